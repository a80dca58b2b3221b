//! What earlier releases stored is read, and means what it meant.

use super::*;
use crate::config::DeliveryMode;
use crate::control::nodes::Wanted;

fn read<T: for<'a> Deserialize<'a>>(text: &str) -> T {
    serde_json::from_str(text).unwrap()
}

macro_rules! stored {
    ($name:literal) => {
        read(include_str!(concat!(
            "../../../tests/fixtures/0.1.0/",
            $name,
            ".json"
        )))
    };
}

#[test]
fn a_function_of_0_1_0_is_active_alone_and_was_activated_when_it_was_deployed() {
    let record: FunctionRecord = stored!("function");
    assert_eq!((record.version, record.generation()), (1, 1));
    assert!(!record.pending && record.trial.is_none() && record.story.is_empty());
    assert!(record.controls.are_none() && record.previous.is_none());
    assert_eq!(record.activated_at(), record.deployed_at);
    let [input] = record.inputs.as_slice() else {
        panic!("{:?}", record.inputs);
    };
    assert!(input.begun && input.resets == 0);
    // Its transactions keep their ids.
    assert_eq!(input.life(input.created), input.created);
    let queue: FunctionRecord = stored!("queue-function");
    assert_eq!(queue.settings.delivery, DeliveryMode::AtLeastOnce);
    assert_eq!(queue.all_targets().count(), 1);
}

#[test]
fn a_node_of_0_1_0_serves_confirms_and_tries_nothing() {
    let node: NodeRecord = stored!("node");
    assert!(node.serves("shop") && !node.tries && !node.metrics);
    assert_eq!(node.state(), "serving");
    let entry = node.function("shop", "hostile").unwrap();
    assert_eq!((entry.version, entry.generation), (1, 0));
    let record: FunctionRecord = stored!("function");
    let next = FunctionRecord {
        version: 2,
        ..record.clone()
    };
    let known = |record: &FunctionRecord| Wanted::of(record).is_known_to(entry);
    assert_eq!((known(&record), known(&next)), (true, false));
}

#[test]
fn what_waits_since_0_1_0_goes_on_where_it_was() {
    let attempts: AttemptsRecord = stored!("attempts");
    assert_eq!((attempts.format, attempts.attempts), (FORMAT, 1));
    assert_eq!(attempts.errors[0].code, "x");
    let position: PositionRecord = stored!("position");
    assert_eq!(position.sequence, 2);
    assert_eq!(position.parked_sequences().collect::<Vec<_>>(), [1]);
    assert!(!position.closed);
    let tick = include_bytes!("../../../tests/fixtures/0.1.0/tick.json");
    let tick = TimerRecord::read(tick).unwrap();
    assert_eq!(tick.ticking.unwrap().schedule.cron, "0 0 * * * *");
}
