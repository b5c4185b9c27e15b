//! Connections of applications: whatever they send, nothing arrives that hyper reads as other requests.

#![no_main]

#[path = "../readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| readers::feed(bytes, false));
