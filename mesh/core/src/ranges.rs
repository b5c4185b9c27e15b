//! Fields and the ranges they must be in.

/// The first of these fields (name, value, least, most) that is out of its range, as a sentence for the operator.
///
/// # Errors
/// That sentence: the field, its value, its range.
pub fn within(fields: &[(&str, u64, u64, u64)]) -> Result<(), String> {
    match fields.iter().find(|(_, value, least, most)| value < least || value > most) {
        None => Ok(()),
        Some((field, value, least, most)) => Err(format!("{field} is {value}, allowed are {least} to {most}")),
    }
}
