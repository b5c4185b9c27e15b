//! Bytes come back as what they were made of, and never panic.

use starling_core::wire::{self, Message, Received};

use super::*;

proptest! {
    #[test]
    fn records_survive_the_wire(history in writes()) {
        let message = Message::Push(replicas(&history).iter().flat_map(records).collect());
        let received = Received { message: Some(message.clone()), skipped: 0 };
        prop_assert_eq!(Message::decode(&message.encode()).unwrap(), received);
    }

    #[test]
    fn bytes_from_the_wire_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Message::decode(&bytes);
        if let Some(first) = bytes.first_mut() {
            *first = wire::WIRE_VERSION;
        }
        // Any kind of message, then the ones there are.
        let _ = Message::decode(&bytes);
        for kind in 0..16 {
            if let Some(second) = bytes.get_mut(1) {
                *second = kind;
            }
            let _ = Message::decode(&bytes);
        }
        let _ = wire::decode::<wire::Question>(&bytes);
        let _ = wire::decode::<wire::Reply>(&bytes);
    }
}
