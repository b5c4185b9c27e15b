//! How an entry of the log becomes bytes, and how a log is read back whatever has happened to it.
//!
//! A frame is: marker (4 bytes), length of the payload (u32), checksum of offset and length, checksum of the payload,
//! payload. The header has a checksum of its own, so a length is either right or known to be wrong: a damaged payload
//! is skipped by its length and the frames behind it are safe. Where even the header is damaged, the next marker with
//! a right header is searched for. The header's checksum covers the frame's offset in the file, so that a document
//! which happens to hold a frame (or was made to) is never taken for one.

use serde::{Deserialize, Serialize};
use starling_core::id::{Incarnation, MeshName, NodeId};
use starling_core::record::{Cell, Key, Record};
use starling_core::time::{HybridTime, WallTime};

/// The first bytes of a log: its name and the version of its format.
pub(super) const HEADER: [u8; 8] = *b"STARLOG\x01";
/// Bytes of a frame before its payload.
pub(super) const FRAME_BYTES: usize = 16;
/// The largest payload. A document with many concurrent versions of the largest size fits.
pub(super) const MAX_PAYLOAD_BYTES: usize = 64 * 1024 * 1024;

/// Begins every frame; the first byte never begins UTF-8 text.
const MARKER: [u8; 4] = [0xf5, b'S', b'L', 0x0a];

/// What the log says of its owner; written at every start and every few seconds. The last one counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta {
    /// The mesh the node belongs to.
    pub(super) mesh: MeshName,
    /// The node whose log this is.
    pub(super) node: NodeId,
    /// Which start of it wrote this.
    pub(super) incarnation: Incarnation,
    /// The latest wall time known to have been used.
    pub(super) mark: WallTime,
    /// The highest stamp among all records ever kept, also those forgotten since.
    pub(super) highest: HybridTime,
    /// When parts of the log were found damaged last: what this node lost then, its peers may still have.
    #[serde(default)]
    pub(super) damaged: Option<WallTime>,
}

/// One entry of the log. For the same key, the last one counts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Entry {
    /// Keep this.
    Record(Record),
    /// This is no longer kept.
    Forget(Key),
    /// About the node itself.
    Meta(Meta),
}

/// The payload begins with this, as a MessagePack value of its own: the key of a damaged record can often be read.
#[derive(Serialize, Deserialize)]
enum Head<K> {
    Record(K),
    Forget(K),
    Meta,
}

/// A stretch of the log that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    /// Where it begins.
    pub(super) offset: u64,
    /// How long it is.
    pub(super) bytes: u64,
    /// What it was about, when that much can be read.
    pub(super) key: Option<Key>,
    /// An unfinished write at the end, as any crash can leave it; anything else is a fault of disk or file system.
    pub(super) torn_tail: bool,
}

/// Appends a record's frame to `buffer`, whose first byte will be at `base` in the file.
pub(super) fn push_record(buffer: &mut Vec<u8>, base: u64, record: &Record) -> Result<(), String> {
    push(buffer, base, |payload| {
        rmp_serde::encode::write(payload, &Head::Record(&record.key))?;
        rmp_serde::encode::write(payload, &record.cell)
    })
}

/// Appends the frame that forgets a key.
pub(super) fn push_forget(buffer: &mut Vec<u8>, base: u64, key: &Key) -> Result<(), String> {
    push(buffer, base, |payload| rmp_serde::encode::write(payload, &Head::Forget(key)))
}

/// Appends a meta frame.
pub(super) fn push_meta(buffer: &mut Vec<u8>, base: u64, meta: &Meta) -> Result<(), String> {
    push(buffer, base, |payload| {
        rmp_serde::encode::write(payload, &Head::<&Key>::Meta)?;
        rmp_serde::encode::write(payload, meta)
    })
}

/// Appends a frame with a payload copied from elsewhere.
pub(super) fn push_payload(buffer: &mut Vec<u8>, base: u64, payload: &[u8]) -> Result<(), String> {
    push(buffer, base, |out| {
        out.extend_from_slice(payload);
        Ok(())
    })
}

/// Appends a frame with what `write` makes.
pub(super) fn push(
    buffer: &mut Vec<u8>,
    base: u64,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), rmp_serde::encode::Error>,
) -> Result<(), String> {
    let start = buffer.len();
    buffer.resize(start + FRAME_BYTES, 0);
    let written = write(buffer).map_err(|error| error.to_string());
    let length = buffer.len() - start - FRAME_BYTES;
    if let Err(why) = written.and_then(|()| match length <= MAX_PAYLOAD_BYTES {
        true => Ok(()),
        false => Err(format!("record of {length} bytes is over the limit of {MAX_PAYLOAD_BYTES}")),
    }) {
        buffer.truncate(start);
        return Err(why);
    }
    let length = length as u32;
    let payload_sum = crc32fast::hash(&buffer[start + FRAME_BYTES..]);
    let header = &mut buffer[start..start + FRAME_BYTES];
    header[..4].copy_from_slice(&MARKER);
    header[4..8].copy_from_slice(&length.to_le_bytes());
    header[8..12].copy_from_slice(&header_sum(base + start as u64, length).to_le_bytes());
    header[12..].copy_from_slice(&payload_sum.to_le_bytes());
    Ok(())
}

fn header_sum(offset: u64, length: u32) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&offset.to_le_bytes());
    sum.update(&length.to_le_bytes());
    sum.finalize()
}

/// What a stretch of a log is.
pub(super) enum Stretch<'a> {
    /// A frame; its payload is what was written.
    Sound(&'a [u8]),
    /// Something that cannot be read.
    Damaged {
        /// An unfinished write at the end, as any crash can leave it.
        torn_tail: bool,
    },
}

/// Reads a whole log, calling `see` with every sound entry in order: offset and length of its frame, and the entry.
/// Returns what could not be read.
pub(crate) fn scan(bytes: &[u8], mut see: impl FnMut(u64, u64, Entry)) -> Vec<Damage> {
    let mut damages = Vec::new();
    walk(bytes, |at, end, stretch| match stretch {
        Stretch::Sound(payload) => match read(payload) {
            Some(entry) => see(at as u64, (end - at) as u64, entry),
            None => damages.push(damage(bytes, at, end, false)),
        },
        Stretch::Damaged { torn_tail } => damages.push(damage(bytes, at, end, torn_tail)),
    });
    damages
}

/// Goes over a whole log of frames, whatever is in them, in order: where each stretch begins and ends, and what it is.
pub(super) fn walk<'a>(bytes: &'a [u8], mut see: impl FnMut(usize, usize, Stretch<'a>)) {
    let mut at = HEADER.len().min(bytes.len());
    while at < bytes.len() {
        let end = match payload_length(bytes, at) {
            Some(length) if at + FRAME_BYTES + length > bytes.len() => {
                see(at, bytes.len(), Stretch::Damaged { torn_tail: true });
                break;
            }
            Some(length) => {
                let end = at + FRAME_BYTES + length;
                let payload = checked_payload(&bytes[at..end]);
                see(at, end, payload.map_or(Stretch::Damaged { torn_tail: false }, Stretch::Sound));
                end
            }
            None => {
                let next = (at + 1..bytes.len()).find(|next| payload_length(bytes, *next).is_some());
                let end = next.unwrap_or(bytes.len());
                // A crash can leave the beginning of a header, or a file that grew but was never filled.
                let unfinished = end - at < FRAME_BYTES || bytes[at..end].iter().all(|byte| *byte == 0);
                see(at, end, Stretch::Damaged { torn_tail: next.is_none() && unfinished });
                end
            }
        };
        at = end;
    }
}

/// The payload of the frame at `at`, checked; `None` when it is damaged.
pub(super) fn checked_payload(frame: &[u8]) -> Option<&[u8]> {
    let (header, payload) = frame.split_at_checked(FRAME_BYTES)?;
    (crc32fast::hash(payload).to_le_bytes() == header[12..]).then_some(payload)
}

/// The length a frame's header gives, if there is a header at `at` and it is sound.
fn payload_length(bytes: &[u8], at: usize) -> Option<usize> {
    let header = bytes.get(at..at + FRAME_BYTES)?;
    if header[..4] != MARKER {
        return None;
    }
    let length = u32::from_le_bytes(header[4..8].try_into().ok()?);
    let sound = header_sum(at as u64, length).to_le_bytes() == header[8..12];
    (sound && length as usize <= MAX_PAYLOAD_BYTES).then_some(length as usize)
}

fn read(payload: &[u8]) -> Option<Entry> {
    let mut input = rmp_serde::Deserializer::from_read_ref(payload);
    match Head::<Key>::deserialize(&mut input).ok()? {
        Head::Record(key) => Some(Entry::Record(Record { key, cell: Cell::deserialize(&mut input).ok()? })),
        Head::Forget(key) => Some(Entry::Forget(key)),
        Head::Meta => Some(Entry::Meta(Meta::deserialize(&mut input).ok()?)),
    }
}

fn damage(bytes: &[u8], at: usize, end: usize, torn_tail: bool) -> Damage {
    let key = bytes.get(at + FRAME_BYTES..end).and_then(|payload| {
        match Head::<Key>::deserialize(&mut rmp_serde::Deserializer::from_read_ref(payload)).ok()? {
            Head::Record(key) | Head::Forget(key) => Some(key),
            Head::Meta => None,
        }
    });
    Damage { offset: at as u64, bytes: (end - at) as u64, key, torn_tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forget(name: &str) -> Key {
        Key::Config(starling_core::id::ConfigKey {
            namespace: Default::default(),
            group: Default::default(),
            key: name.parse().unwrap(),
        })
    }

    fn log_of(names: &[&str]) -> Vec<u8> {
        let mut bytes = HEADER.to_vec();
        for name in names {
            push_forget(&mut bytes, 0, &forget(name)).unwrap();
        }
        bytes
    }

    fn read_back(bytes: &[u8]) -> (Vec<Key>, Vec<Damage>) {
        let mut keys = Vec::new();
        let damages = scan(bytes, |_, _, entry| match entry {
            Entry::Forget(key) => keys.push(key),
            other => panic!("{other:?}"),
        });
        (keys, damages)
    }

    #[test]
    fn any_single_flipped_bit_costs_one_entry_and_is_reported() {
        let sound = log_of(&["one", "two", "three"]);
        for bit in HEADER.len() * 8..sound.len() * 8 {
            let mut bytes = sound.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let (keys, damages) = read_back(&bytes);
            assert_eq!((keys.len(), damages.len()), (2, 1), "bit {bit}: {keys:?} {damages:?}");
            assert!(!damages[0].torn_tail, "bit {bit}: a flipped bit is not an unfinished write");
        }
    }

    #[test]
    fn any_bytes_can_be_read_without_a_panic() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..300 {
            let mut bytes = log_of(&["one", "two", "three", "four"]);
            for _ in 0..random.usize(1..40) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            bytes.truncate(random.usize(..=bytes.len()));
            let (keys, _) = read_back(&bytes);
            assert!(keys.len() <= 4);
        }
    }

    #[test]
    fn a_frame_inside_a_document_is_never_taken_for_a_frame() {
        let inner = log_of(&["fake"]);
        let mut bytes = HEADER.to_vec();
        push_payload(&mut bytes, 0, &inner).unwrap();
        bytes[HEADER.len() + 8] ^= 1; // the outer header is damaged: the reader searches inside the payload
        let (keys, damages) = read_back(&bytes);
        assert!(keys.is_empty() && damages.len() == 1, "{keys:?}");
    }

    #[test]
    fn a_tail_that_was_never_filled_is_an_unfinished_write() {
        let mut bytes = log_of(&["one"]);
        bytes.resize(bytes.len() + 100, 0);
        let (keys, damages) = read_back(&bytes);
        assert_eq!(keys.len(), 1);
        assert!(damages.len() == 1 && damages[0].torn_tail);
    }
}
