//! Where a handler's effects go: to the node when compiled to wasm, to memory everywhere else. Both offer the same
//! functions, so nothing above knows the difference.

#[cfg(not(target_arch = "wasm32"))]
mod memory;
#[cfg(target_arch = "wasm32")]
mod wasm;

#[cfg(not(target_arch = "wasm32"))]
pub(crate) use memory::TestHost as Host;
#[cfg(not(target_arch = "wasm32"))]
pub use memory::{LogLine, TestHost};
#[cfg(target_arch = "wasm32")]
pub(crate) use wasm::{Host, enter};
