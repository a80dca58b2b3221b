//! The only place that prints: headings, what was seen, and a ✓ or ✗ for every expectation.

#![allow(clippy::print_stdout, reason = "a program's output, all of it here")]

use crate::observe::{Order, Seen, Step};

/// Counts what held and what did not.
pub(crate) struct Report {
    held: usize,
    failed: usize,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { held: 0, failed: 0 }
    }

    pub(crate) fn heading(&self, text: &str) {
        println!("\n{text}");
    }

    pub(crate) fn line(&self, text: &str) {
        println!("  {text}");
    }

    /// An expectation.
    pub(crate) fn check(&mut self, holds: bool, text: &str) {
        if holds {
            self.held += 1;
            println!("  ✓ {text}");
        } else {
            self.failed += 1;
            println!("  ✗ {text}");
        }
    }

    /// The last line; whether everything held.
    pub(crate) fn sum(&self) -> bool {
        println!("\n{} expectations held, {} did not", self.held, self.failed);
        self.failed == 0
    }

    pub(crate) fn orders(&self, seen: &Seen) {
        self.heading("Orders, as the KV bucket `shop` has them");
        for (id, order) in &seen.orders {
            self.line(&describe(id, order));
        }
    }

    pub(crate) fn mails(&self, seen: &Seen) {
        self.heading("E-mails to be sent, in the stream NOTIFICATIONS");
        for (order, _) in &seen.orders {
            let kinds: Vec<_> = seen
                .mails
                .iter()
                .filter(|mail| mail.order_id == *order)
                .map(|mail| mail.kind.as_str())
                .collect();
            self.line(&format!("{order}  {}", kinds.join(", ")));
        }
    }

    pub(crate) fn dead_letters(&self, seen: &Seen) {
        self.heading("Dead letters, in the stream PELTON_DEAD_shop");
        for dead in &seen.dead {
            self.line(&format!(
                "{:<9} {:<19} {}, {} attempt(s): {}",
                dead.function, dead.subject, dead.code, dead.attempts, dead.reason
            ));
        }
    }
}

fn describe(id: &str, order: &Order) -> String {
    let total = order.total_price.to_string();
    let mut text = format!(
        "{id}  {:<9}  {} {}",
        order.status,
        order.customer_id,
        total.trim_matches('"')
    );
    let steps = [
        ("payment", &order.payment),
        ("shipping", &order.shipping),
        ("delivery", &order.delivery),
    ];
    for (name, step) in steps {
        if let Some(Step { id, status }) = step {
            text += &format!(" · {name} {id} {status}");
        }
    }
    text
}
