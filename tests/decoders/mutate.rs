//! Inputs that are nearly right: samples with bits flipped, bytes changed, pieces cut out, doubled, moved and joined.

use fastrand::Rng;

/// Bytes that mean something to many formats: limits of integers, signs of text.
const TELLING: [u8; 16] = [0, 1, 0x7f, 0x80, 0xff, 0xc0, 0xf5, b'\n', b'"', b'{', b'[', b'=', b'.', b':', b'-', b'9'];
/// How many inputs that were taken are kept to be changed further.
const MAX_KEPT: usize = 256;

/// Makes inputs from samples.
pub(crate) struct Mutator {
    random: Rng,
    samples: Vec<Vec<u8>>,
    /// Inputs that were taken: what is near them reaches further.
    kept: Vec<Vec<u8>>,
    max_bytes: usize,
}

impl Mutator {
    pub(crate) fn new(seed: u64, samples: Vec<Vec<u8>>, max_bytes: usize) -> Self {
        Self { random: Rng::with_seed(seed), samples, kept: Vec::new(), max_bytes }
    }

    /// Remembers an input that was taken.
    pub(crate) fn keep(&mut self, input: Vec<u8>) {
        if self.kept.len() < MAX_KEPT {
            self.kept.push(input);
        } else {
            let at = self.random.usize(..MAX_KEPT);
            self.kept[at] = input;
        }
    }

    /// The next input.
    pub(crate) fn next(&mut self) -> Vec<u8> {
        let mut input = self.any();
        for _ in 0..1 << self.random.u32(..5) {
            self.change(&mut input);
        }
        input.truncate(self.max_bytes);
        input
    }

    fn any(&mut self) -> Vec<u8> {
        let from = if !self.kept.is_empty() && self.random.bool() { &self.kept } else { &self.samples };
        match self.random.u8(..32) {
            0 => (0..self.random.usize(..300)).map(|_| self.random.u8(..)).collect(),
            _ => from[self.random.usize(..from.len())].clone(),
        }
    }

    fn change(&mut self, input: &mut Vec<u8>) {
        if input.is_empty() {
            input.push(self.random.u8(..));
            return;
        }
        let at = self.random.usize(..input.len());
        let until = at + self.random.usize(..=(input.len() - at).min(64));
        match self.random.u8(..9) {
            0 => input[at] ^= 1 << self.random.u32(..8),
            1 => input[at] = self.random.u8(..),
            2 => input[at] = TELLING[self.random.usize(..TELLING.len())],
            3 => input[at] = input[at].wrapping_add(if self.random.bool() { 1 } else { 255 }),
            4 => drop(input.drain(at..until)),
            5 => {
                let piece = input[at..until].to_vec();
                let to = self.random.usize(..=input.len());
                input.splice(to..to, piece);
            }
            6 => input.truncate(at),
            7 => {
                let other = self.any();
                let from = self.random.usize(..=other.len());
                let piece = other[from..].iter().take(self.random.usize(..256)).copied();
                input.splice(at..until, piece);
            }
            _ => {
                let length = [4, 8][self.random.usize(..2)].min(input.len() - at);
                let number = [0, 1, u64::from(u32::MAX), u64::MAX, 1 << 40][self.random.usize(..5)];
                input[at..at + length].copy_from_slice(&number.to_le_bytes()[..length]);
            }
        }
    }
}
