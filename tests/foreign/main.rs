//! Programs of other people meet the mesh as their users would let them: the real binary, real sockets.
//!
//! Each file is about one of them. Where a program is missing, a line says which package has it, and the test passes
//! without having tested anything; look for `skipped:` with `--nocapture`. With `STARLING_FOREIGN=required` in the
//! environment, as `.ci/run` sets it, it fails instead.

#![allow(clippy::unwrap_used)] // a helper that fails is a failed test
#![allow(clippy::print_stdout, clippy::print_stderr)] // what is skipped, and the log of a node whose test failed

mod curl;
mod grpc;
mod nginx;
mod programs;
mod redirect;
mod redis;
#[path = "../support/mod.rs"]
mod support;
mod websocket;
