//! What happens to seven orders, and what must have come of it.

use anyhow::Result;
use producer_example::{Event, EventSource, Order};

use crate::observe::{DeadLetter, Mail, Observer, Seen};
use crate::report::Report;

/// Published events that the checks refer to.
pub(crate) struct Told {
    /// E-mails that must have come of it.
    mails: Vec<Mail>,
    /// A payment of an order that was completed.
    illegal: Event,
    /// An event whose data is cut off.
    broken: Event,
}

/// Publishes with the producer of `examples/producer`, and says each event.
struct Teller<'a> {
    source: EventSource,
    observer: &'a Observer,
    report: &'a mut Report,
    mails: Vec<Mail>,
}

/// Tells all the stories, and returns when everything has been handled and transported.
pub(crate) async fn tell(
    client: async_nats::Client,
    observer: &Observer,
    report: &mut Report,
) -> Result<Told> {
    let source = EventSource::new(client, "/shop/checkout");
    let mut teller = Teller {
        source,
        observer,
        report,
        mails: Vec::new(),
    };
    teller.smooth("o-1", "alice", "129.90").await?;
    teller.duplicates().await?;
    teller.out_of_order().await?;
    let illegal = teller.illegal().await?;
    let broken = teller.broken().await?;
    teller.declined().await?;
    teller.last().await?;
    Ok(Told {
        mails: teller.mails,
        illegal,
        broken,
    })
}

impl Teller<'_> {
    /// An event that must make an e-mail, which says order and step as the subject does.
    async fn publish(&mut self, event: &Event, note: &str) -> Result<u64> {
        let mut tokens = event.subject.split('.').skip(1);
        let (order, kind) = (tokens.next(), tokens.next());
        self.mails.push(Mail::new(
            order.unwrap_or_default(),
            kind.unwrap_or_default(),
        ));
        self.send(event, note).await
    }

    async fn send(&mut self, event: &Event, note: &str) -> Result<u64> {
        let ack = self.source.publish(event).await?;
        self.report.line(&format!(
            "#{:<3} {:<24} {note}",
            ack.sequence, event.subject
        ));
        Ok(ack.sequence)
    }

    async fn smooth(&mut self, id: &str, customer: &str, total: &str) -> Result<()> {
        for event in Order::new(id, customer, total).life() {
            self.publish(&event, "").await?;
        }
        Ok(())
    }

    /// The same event again: under another `Nats-Msg-Id`, so that it is stored twice and the functions must notice,
    /// and under the same one, which the stream drops.
    async fn duplicates(&mut self) -> Result<()> {
        let order = Order::new("o-2", "bob", "18.00");
        let created = order.created();
        let first = self.publish(&created, "").await?;
        let again = Event {
            dedupe: format!("{}-again", created.id),
            ..created.clone()
        };
        let second = self
            .send(&again, "duplicate: same event id, another Nats-Msg-Id")
            .await?;
        self.report.check(
            second > first,
            "the stream stored the duplicate: telling it apart is up to the functions",
        );
        let ack = self.source.publish(&created).await?;
        self.report.check(
            ack.duplicate,
            "sent once more with its own Nats-Msg-Id, the stream dropped it",
        );
        let paid = order.paid("success");
        self.publish(&paid, "").await?;
        let again = Event {
            dedupe: format!("{}-again", paid.id),
            ..paid
        };
        self.send(&again, "duplicate").await?;
        Ok(())
    }

    /// Paid before created: the event waits.
    async fn out_of_order(&mut self) -> Result<()> {
        let order = Order::new("o-3", "carol", "7.25");
        let early = self
            .publish(&order.paid("success"), "too early: o-3 does not exist yet")
            .await?;
        self.observer.deferred(early).await?;
        let none = self.observer.order("o-3").await?.is_none();
        self.report.check(
            none,
            "the early event waits, and has left no trace in the state",
        );
        self.publish(&order.created(), "what it waited for").await?;
        Ok(())
    }

    /// A completed order is paid again.
    async fn illegal(&mut self) -> Result<Event> {
        let order = Order::new("o-4", "dave", "1000.00");
        self.smooth(&order.id, &order.customer, &order.total)
            .await?;
        self.observer.becomes("o-4", "completed").await?;
        let illegal = order.paid_by("payment-2", "success");
        self.publish(&illegal, "illegal: o-4 is completed").await?;
        Ok(illegal)
    }

    /// Data that is cut off.
    async fn broken(&mut self) -> Result<Event> {
        let whole = Order::new("o-5", "erin", "5.00").created();
        let half = whole.data.len() / 2;
        let broken = Event {
            data: whole.data.iter().copied().take(half).collect(),
            ..whole
        };
        self.send(&broken, "broken: its JSON is cut off").await?;
        Ok(broken)
    }

    /// A payment that does not pay: no e-mail for it, but one for the `payment-failed` that `orders` emits.
    async fn declined(&mut self) -> Result<()> {
        let order = Order::new("o-6", "frank", "64.50");
        self.publish(&order.created(), "").await?;
        self.send(&order.paid("declined"), "payment declined")
            .await?;
        self.observer.payment_failed("o-6").await?;
        self.mails.push(Mail::new("o-6", "payment-failed"));
        Ok(())
    }

    /// When all is handled, one more event: emitted events keep their order, so its e-mail is the last to arrive.
    async fn last(&mut self) -> Result<()> {
        self.observer.idle().await?;
        let order = Order::new("o-7", "grace", "0.10");
        self.publish(
            &order.created(),
            "the last one: published when all others were handled",
        )
        .await?;
        self.observer.idle().await?;
        self.observer.mailed("o-7").await
    }
}

impl Told {
    pub(crate) fn check_orders(&self, seen: &Seen, report: &mut Report) {
        let status = |id: &str| {
            let found = seen.orders.iter().find(|(found, _)| found == id);
            found.map_or("missing", |(_, order)| order.status.as_str())
        };
        report.check(
            status("o-1") == "completed",
            "o-1 went through its life: completed",
        );
        report.check(
            status("o-2") == "paid",
            "o-2 was created and paid twice each, which changed nothing: paid",
        );
        report.check(
            status("o-3") == "paid",
            "o-3's early payment waited for its creation: paid",
        );
        report.check(
            status("o-4") == "completed",
            "o-4 stayed as it was when it was paid again: completed",
        );
        report.check(status("o-5") == "missing", "o-5 was never created");
        let unpaid = status("o-6") == "created" && seen.payment_failed.len() == 1;
        report.check(
            unpaid,
            "o-6 is unpaid, and one orders.o-6.payment-failed was emitted",
        );
        report.check(
            status("o-7") == "created" && seen.orders.len() == 6,
            "o-7 is created, and there are no other orders",
        );
    }

    pub(crate) fn check_notifications(&self, seen: &Seen, report: &mut Report) {
        let sorted = |mails: &[Mail]| {
            let mut mails = mails.to_vec();
            mails.sort();
            mails
        };
        report.check(
            sorted(&seen.mails) == sorted(&self.mails),
            &format!(
                "{} e-mails for {} events, one each, duplicates or not",
                seen.mails.len(),
                self.mails.len()
            ),
        );
    }

    pub(crate) fn check_dead_letters(&self, seen: &Seen, report: &mut Report) {
        let of = |event: &Event, function: &str| -> Option<&DeadLetter> {
            let mut dead = seen.dead.iter();
            dead.find(|dead| dead.event_id == event.id && dead.function == function)
        };
        let illegal = of(&self.illegal, "orders").is_some_and(|dead| dead.attempts == 1);
        report.check(
            illegal,
            "paying the completed o-4 was given up on at the first attempt",
        );
        let broken = of(&self.broken, "orders").is_some_and(|dead| dead.attempts == 1);
        report.check(broken, "so was the event that does not parse, by orders");
        let broken = of(&self.broken, "notifier").is_some_and(|dead| dead.attempts == 1);
        report.check(broken, "and, independently, by notifier");
        report.check(seen.dead.len() == 3, "nothing else was given up on");
    }
}
