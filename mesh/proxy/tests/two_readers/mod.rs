//! What the test and the fuzz targets share.

pub(crate) mod answers;
pub(crate) mod drawn;
pub(crate) mod heard;
pub(crate) mod requests;
#[path = "../support/mod.rs"]
pub(crate) mod support;
