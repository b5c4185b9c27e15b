//! A run as a picture: one HTML page that needs nothing else, or the drawing alone as SVG.
//!
//! Every node has a lane, and its colour is what it holds: lanes of one colour hold the same, byte for byte. When the
//! mesh is cut and both sides go on writing, the lanes part into two colours; when it is whole again, they become one.
//! Lines lead from each write to the moments the others learned of it. Cuts are shaded, with a fence between the lanes
//! that do not reach each other; crashes are gaps.
//!
//! ```
//! use starling_sim::{Mesh, picture::Page, secs};
//!
//! let mut mesh = Mesh::builder(7).nodes(3).record().build();
//! mesh.cut(&["n1"], &["n2", "n3"]);
//! mesh.register("n1", "orders", "o1");
//! mesh.run_for(secs(10));
//! mesh.heal();
//! mesh.run_for(secs(5));
//! let (recording, report) = (mesh.recording().unwrap(), mesh.report());
//! let html = Page::of(&recording, &report).html();
//! assert!(html.starts_with("<!doctype html>") && !html.contains("http"));
//! ```
//!
//! | Room | What it does |
//! |---|---|
//! | `model` | a recording as it is drawn |
//! | `truths` | which nodes hold the same, and so which colour a lane has when |
//! | `axis` | from time to place: as the clock goes, or with the quiet stretches pressed together |
//! | `draw`, `marks` | the drawing: lanes, cuts and gaps; what stands in them |
//! | `page` | the page around it |
//! | `text` | nothing gets into either without being escaped |

mod axis;
mod draw;
mod marks;
mod model;
mod page;
mod text;
mod truths;

use crate::recording::Recording;
use crate::report::Report;

pub use axis::Scale;

/// What a page is made of.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// What it is about; may be empty.
    pub title: &'a str,
    /// How to run it again.
    pub replay: &'a str,
    /// The run.
    pub recording: &'a Recording,
    /// Its figures, if there are any.
    pub report: Option<&'a Report>,
    /// The run told in lines, if somebody did.
    pub story: &'a [String],
    /// Whether everything went as expected.
    pub ok: bool,
}

impl<'a> Page<'a> {
    /// A page of a run of one's own making.
    pub fn of(recording: &'a Recording, report: &'a Report) -> Self {
        Self { title: "", replay: &recording.replay, recording, report: Some(report), story: &[], ok: true }
    }

    /// The page: no other file, no network, light or dark as its reader's machine is.
    pub fn html(&self) -> String {
        page::html(self)
    }

    /// The drawing alone, with its colours in it.
    pub fn svg(&self, scale: Scale) -> String {
        draw::svg(&model::Run::of(self.recording, self.title), scale, true)
    }
}
