//! Answers of applications: whatever they say, nobody is told what hyper reads as another answer.

#![no_main]

#[path = "../readers.rs"]
mod readers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| readers::feed(bytes, true));
