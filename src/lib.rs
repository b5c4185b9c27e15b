//! Starling: the assembly of the five crates under mesh/.
