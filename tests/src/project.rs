//! A folder with a `pelton.toml`, as a user has one.

use std::path::{Path, PathBuf};

use anyhow::Result;
use tempfile::TempDir;

/// A project in a temporary folder; gone when dropped.
#[derive(Debug)]
pub struct Project {
    folder: TempDir,
}

/// Streams of the order system.
pub const SHOP_STREAMS: &str = r#"
[streams.ORDERS]
subjects = ["orders.>"]
[streams.NOTIFICATIONS]
subjects = ["notifications.>"]
"#;

impl Project {
    /// A project of the app `shop` whose manifest goes on with `rest`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn new(rest: &str) -> Result<Self> {
        Self::verbatim(&format!("pelton = 1\napp = \"shop\"\n{rest}"))
    }

    /// A project whose manifest is `text`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn verbatim(text: &str) -> Result<Self> {
        let project = Self {
            folder: tempfile::tempdir()?,
        };
        project.rewrite(text)?;
        Ok(project)
    }

    /// Replaces the manifest by one of the app `shop` that goes on with `rest`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn change(&self, rest: &str) -> Result<()> {
        self.rewrite(&format!("pelton = 1\napp = \"shop\"\n{rest}"))
    }

    fn rewrite(&self, text: &str) -> Result<()> {
        Ok(std::fs::write(self.path().join("pelton.toml"), text)?)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file into the folder.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn file(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.path().join(name);
        std::fs::write(&path, bytes)?;
        Ok(path)
    }
}

/// The tables of one function with the default delivery, in order per `token` of the subject: `more` is further keys and
/// sub-tables.
pub fn keyed(name: &str, component: &Path, token: u32, more: &str) -> String {
    format!(
        "\n[functions.{name}]\ncomponent = {component:?}\nkey = {{ token = {token} }}\n{more}\n"
    )
}

/// The tables of one function on a plain queue: `more` is further keys and sub-tables (`[functions.NAME.retry]` …) in full.
pub fn function(name: &str, component: &Path, more: &str) -> String {
    format!(
        "\n[functions.{name}]\ncomponent = {component:?}\ndelivery = \"at-least-once\"\n{more}\n"
    )
}

/// `orders` and `notifier` on plain queues.
pub fn shop(orders: &Path, notifier: &Path) -> String {
    let orders = function("orders", orders, QUICK_RETRY);
    shop_of(
        &orders,
        &function("notifier", notifier, "subjects = [\"orders.>\"]"),
    )
}

/// `orders` and `notifier` with the default delivery, in order per order.
pub fn shop_in_order(orders: &Path, notifier: &Path) -> String {
    let orders = keyed("orders", orders, 2, QUICK_RETRY);
    shop_of(
        &orders,
        &keyed("notifier", notifier, 2, "subjects = [\"orders.>\"]"),
    )
}

fn shop_of(orders: &str, notifier: &str) -> String {
    let mut text = SHOP_STREAMS.to_owned();
    text += orders;
    text += "[functions.orders.allow]\nemit = [\"orders.*.payment-failed\"]\n";
    text += notifier;
    text += "[functions.notifier.allow]\nemit = [\"notifications.email\"]\n";
    text
}

/// Retries fast enough for a test to see several.
pub const QUICK_RETRY: &str =
    "retry = { max-attempts = 3, initial-delay = \"50ms\", max-delay = \"200ms\" }";
