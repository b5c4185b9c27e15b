//! A run that panics is a run that fails: what it said, without ending the rest, and without a back trace for each of the
//! hundreds of runs in which it is made smaller.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    static SAID: RefCell<String> = const { RefCell::new(String::new()) };
}

static HOOK: Once = Once::new();

/// Runs something and returns what it says when it panics. Panics elsewhere are told as before.
pub(super) fn guarded<R>(run: impl FnOnce() -> R) -> Result<R, String> {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if GUARDED.get() {
                SAID.with_borrow_mut(|said| *said = panic.to_string());
            } else {
                before(panic);
            }
        }));
    });
    let nested = GUARDED.replace(true);
    // What the run owned is dropped with it; nothing of it is used again.
    let result = catch_unwind(AssertUnwindSafe(run));
    GUARDED.set(nested);
    result.map_err(|_| SAID.take())
}
