//! What a developer's machine needs beside a node: a nats-server of its own. Production brings its own servers.

mod find;
mod server;

pub use find::find_nats_server;
pub use server::ServerProcess;
#[cfg(test)]
pub(crate) use server::fresh_server;
