//! The letters of the wire: numbers, texts and names, written without ceremony and read without trust.
//!
//! Numbers are LEB128 (seven bits a byte, the lowest first), hashes and stamps eight bytes. Names repeat within a
//! message far more often than not, so each is spelt once, in a table in front, and named by its place in it.

use std::collections::BTreeMap;

use super::DecodeError;
use crate::id::{CellName, Namespace, NodeId, Region, ServiceName, Zone};

/// The name at place 0 of every table, never spelt: the namespace and the zone of whoever chose none.
const DEFAULT_NAME: &str = "default";

/// Bytes in the making, with the names they refer to.
pub(super) struct Writer<'a> {
    pub(super) bytes: Vec<u8>,
    places: BTreeMap<&'a str, u64>,
    names: Vec<&'a str>,
}

impl<'a> Writer<'a> {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), places: [(DEFAULT_NAME, 0)].into(), names: Vec::new() }
    }

    pub(super) fn byte(&mut self, byte: u8) {
        self.bytes.push(byte);
    }

    pub(super) fn number(&mut self, number: u64) {
        put_number(&mut self.bytes, number);
    }

    pub(super) fn fixed(&mut self, number: u64) {
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    /// Bytes with their number in front.
    pub(super) fn blob(&mut self, blob: &[u8]) {
        self.number(blob.len() as u64);
        self.bytes.extend_from_slice(blob);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.blob(text.as_bytes());
    }

    /// A name by its place in the table.
    pub(super) fn name(&mut self, name: &'a str) {
        let next = self.places.len() as u64;
        let place = *self.places.entry(name).or_insert(next);
        if place == next {
            self.names.push(name);
        }
        self.number(place);
    }

    /// What `write` writes, with its length in front.
    pub(super) fn framed(&mut self, write: impl FnOnce(&mut Self)) {
        let before = std::mem::take(&mut self.bytes);
        write(self);
        let body = std::mem::replace(&mut self.bytes, before);
        self.blob(&body);
    }

    /// Appends the table of names and then everything written.
    pub(super) fn finish(self, out: &mut Vec<u8>) {
        put_number(out, self.names.len() as u64);
        for name in self.names {
            put_number(out, name.len() as u64);
            out.extend_from_slice(name.as_bytes());
        }
        out.extend_from_slice(&self.bytes);
    }
}

pub(super) fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Bytes from a peer. Nothing is allocated beyond what they hold.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn take(&mut self, bytes: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(DecodeError::malformed("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn number(&mut self) -> Result<u64, DecodeError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = u64::from(self.byte()?);
            if shift == 63 && byte > 1 {
                break;
            }
            number |= (byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(DecodeError::malformed("a number has more than 64 bits"))
    }

    pub(super) fn fixed(&mut self) -> Result<u64, DecodeError> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(bytes))
    }

    pub(super) fn fixed32(&mut self) -> Result<u32, DecodeError> {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(self.take(4)?);
        Ok(u32::from_le_bytes(bytes))
    }

    /// A number of at most 32 bits.
    pub(super) fn small(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.number()?).map_err(|_| DecodeError::malformed("a number has more than 32 bits"))
    }

    pub(super) fn blob(&mut self) -> Result<&'a [u8], DecodeError> {
        let bytes = self.number()?;
        self.take(usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    pub(super) fn text(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.blob()?).map_err(|_| DecodeError::malformed("a text is not UTF-8"))
    }

    /// That nothing is left.
    pub(super) fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::malformed("it says more than this node can read")) }
    }

    /// How many of something follow, each of at least so many bytes, and at most so many allowed.
    pub(super) fn count(&mut self, least_bytes: usize, most: usize) -> Result<usize, DecodeError> {
        let count = self.number()?;
        if count > most as u64 {
            return Err(DecodeError::Malformed(format!("{count} of something, at most {most} are allowed")));
        }
        if count as usize > self.rest.len() / least_bytes {
            return Err(DecodeError::malformed("it announces more than it holds"));
        }
        Ok(count as usize)
    }

    /// The table of names in front.
    pub(super) fn names(&mut self) -> Result<Names<'a>, DecodeError> {
        let count = self.count(1, super::MAX_RECORDS * 4)?;
        let mut names = Vec::with_capacity(count + 1);
        names.push(Spelt::of(DEFAULT_NAME));
        for _ in 0..count {
            names.push(Spelt::of(self.text()?));
        }
        Ok(Names { names })
    }
}

/// A message's table of names. Each is checked once for what it is used as, and shared from then on.
pub(super) struct Names<'a> {
    names: Vec<Spelt<'a>>,
}

pub(super) struct Spelt<'a> {
    text: &'a str,
    node: Option<NodeId>,
    namespace: Option<Namespace>,
    service: Option<ServiceName>,
    zone: Option<Zone>,
    region: Option<Region>,
    cell: Option<CellName>,
}

impl<'a> Spelt<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, node: None, namespace: None, service: None, zone: None, region: None, cell: None }
    }
}

macro_rules! names {
    ($($type:ident, $field:ident);+) => {
        impl Names<'_> {
            $(pub(super) fn $field(&mut self, from: &mut Reader) -> Result<$type, DecodeError> {
                let spelt = self.spelt(from)?;
                match &spelt.$field {
                    Some(known) => Ok(known.clone()),
                    None => {
                        let name: $type = spelt.text.parse().map_err(|error: crate::id::NameError| {
                            DecodeError::Malformed(error.to_string())
                        })?;
                        spelt.$field = Some(name.clone());
                        Ok(name)
                    }
                }
            })+
        }
    };
}

names!(NodeId, node; Namespace, namespace; ServiceName, service; Zone, zone; Region, region; CellName, cell);

impl<'a> Names<'a> {
    /// A text that repeats as names do, and is none.
    pub(super) fn text(&mut self, from: &mut Reader) -> Result<&'a str, DecodeError> {
        Ok(self.spelt(from)?.text)
    }

    fn spelt(&mut self, from: &mut Reader) -> Result<&mut Spelt<'a>, DecodeError> {
        let place = from.number()?;
        let known = usize::try_from(place).ok().and_then(|place| self.names.get_mut(place));
        known.ok_or(DecodeError::malformed("it refers to a name it does not spell"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_reads_back_and_takes_no_more_than_ten_bytes() {
        for number in [0, 1, 0x7f, 0x80, 0x3fff, 0x4000, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put_number(&mut bytes, number);
            assert!(bytes.len() <= 10);
            assert_eq!(Reader::new(&bytes).number().unwrap(), number);
        }
        assert!(Reader::new(&[0xff; 10]).number().is_err(), "more than 64 bits");
        assert!(Reader::new(&[0x80; 9]).number().is_err(), "cut off");
    }

    #[test]
    fn a_count_is_believed_only_as_far_as_there_are_bytes_for_it() {
        let mut bytes = Vec::new();
        put_number(&mut bytes, 1_000);
        bytes.extend_from_slice(&[0; 100]);
        assert!(Reader::new(&bytes).count(1, 2_000).is_err());
        bytes.extend_from_slice(&[0; 900]);
        assert_eq!(Reader::new(&bytes).count(1, 2_000).unwrap(), 1_000);
        assert!(Reader::new(&bytes).count(1, 999).is_err(), "over the limit");
    }
}
