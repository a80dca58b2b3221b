//! What a collector keeps, refuses and shows of one attempt: limits, rules and reads of its own writes.

use std::collections::BTreeMap;

use super::*;
use crate::effects::MemoryState;
use crate::event::Event;
use crate::records::Target;

fn delivery() -> Delivery {
    Delivery {
        event: Event {
            id: "e".into(),
            source: "s".into(),
            ty: "t".into(),
            time: 0,
            subject: None,
            datacontenttype: None,
            dataschema: None,
            extensions: BTreeMap::new(),
            data: Bytes::new(),
        },
        subject: "orders.o-1.paid".into(),
        position: None,
        key: None,
        headers: Vec::new(),
        stored: 7,
        attempt: 1,
        max_attempts: 5,
        timeout: std::time::Duration::from_secs(1),
        expects_reply: false,
    }
}

fn collector(state: &Arc<MemoryState>) -> Collector {
    collector_of(state, &delivery())
}

fn collector_of(state: &Arc<MemoryState>, delivery: &Delivery) -> Collector {
    let rules = Rules {
        app: "shop".into(),
        function: "orders".into(),
        emit: vec!["out.>".into()],
        targets: vec![Target {
            stream: "OUT".into(),
            subjects: vec!["out.>".into()],
            max_message_size: None,
        }],
        max_payload: 1 << 20,
    };
    Collector::new(Arc::new(rules), state.clone(), Txn::sample(), delivery)
}

fn draft(len: usize) -> Draft {
    Draft {
        subject: "out.a".into(),
        id: None,
        source: None,
        ty: None,
        time: None,
        datacontenttype: None,
        attributes: Vec::new(),
        data: vec![0; len].into(),
    }
}

fn keys(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn own_writes_are_read_without_asking() {
    let state = Arc::new(MemoryState::default());
    state.set("a", "stored");
    let mut effects = collector(&state);
    effects.set("a".into(), "mine".into()).unwrap();
    assert_eq!(effects.get("a".into()).await.unwrap(), Some("mine".into()));
    effects.delete("a".into()).unwrap();
    assert_eq!(effects.get("a".into()).await.unwrap(), None);
    assert_eq!(state.round_trips(), 0);
    let effects = effects.finish();
    assert!(
        effects.reads.is_empty(),
        "what was never read is not checked"
    );
    assert_eq!(effects.writes["a"], Write::Delete);
}

#[tokio::test]
async fn what_was_read_once_stays_as_it_was() {
    let state = Arc::new(MemoryState::default());
    let first = state.set("a", "1");
    state.set("gone", "x");
    let tombstone = state.write("gone", Write::Delete);
    let mut effects = collector(&state);
    let asked = keys(&["a", "gone", "never", "a"]);
    let found = effects.get_many(asked).await.unwrap();
    assert_eq!(found, [Some("1".into()), None, None, Some("1".into())]);
    assert_eq!(state.round_trips(), 1);
    state.set("a", "2");
    let found = effects
        .get_many(keys(&["never", "a", "new"]))
        .await
        .unwrap();
    assert_eq!(found[1], Some("1".into()));
    assert_eq!(state.round_trips(), 2);
    let expected = [("a", first), ("gone", tombstone), ("never", 0), ("new", 0)];
    let reads = effects.finish().reads;
    assert_eq!(
        reads,
        expected.map(|(key, rev)| (key.to_owned(), rev)).into()
    );
}

#[tokio::test]
async fn listings_merge_what_the_attempt_did() {
    let state = Arc::new(MemoryState::default());
    for key in ["o.1", "o.2", "o.3", "o.5", "other", "o-x.1"] {
        state.set(key, "v");
    }
    let mut effects = collector(&state);
    effects.delete("o.2".into()).unwrap();
    effects.set("o.4".into(), "v".into()).unwrap();
    effects.set("o.9".into(), "v".into()).unwrap();
    for (after, limit, expected) in [
        (None, 10, &["o.1", "o.3", "o.4", "o.5", "o.9"][..]),
        (None, 2, &["o.1", "o.3"]),
        (Some("o.3"), 2, &["o.4", "o.5"]),
        (Some("o.5"), 2, &["o.9"]),
        (Some("o.1"), 1, &["o.3"]),
    ] {
        let found = effects.list("o", after, limit).await.unwrap();
        assert_eq!(found, expected, "after {after:?}, {limit}");
    }
    assert_eq!(effects.list("", None, 1000).await.unwrap().len(), 7);
    for limit in [0, 1001] {
        let refused = effects.list("o", None, limit).await.unwrap_err();
        assert_eq!(refused.code, "pelton-limit");
    }
    let refused = effects.list("o.", None, 1).await.unwrap_err();
    assert_eq!(refused.code, "pelton-key-invalid");
    assert!(
        effects.finish().reads.is_empty(),
        "a listing is not checked at commit"
    );
}

#[tokio::test]
async fn limits_hold_to_the_last_one() {
    let state = Arc::new(MemoryState::default());
    let mut effects = collector(&state);
    let many: Vec<String> = (0..MAX_KEYS).map(|n| format!("k.{n}")).collect();
    effects.get_many(many[..300].to_vec()).await.unwrap();
    for key in &many {
        effects.set(key.clone(), Bytes::new()).unwrap();
    }
    let refused = effects.set("one.more".into(), Bytes::new()).unwrap_err();
    assert_eq!(refused.code, "pelton-limit");
    let refused = effects.get("one.more".into()).await.unwrap_err();
    assert_eq!(refused.code, "pelton-limit");
    effects.set("k.0".into(), "again".into()).unwrap();

    let mut effects = collector(&state);
    let big = Bytes::from(vec![0; 1 << 20]);
    let refused = effects.set("a".into(), big.clone()).unwrap_err();
    assert_eq!(refused.code, "pelton-limit");
    let large = big.slice(..1_000_000);
    for n in 0..8 {
        effects.set(format!("k.{n}"), large.clone()).unwrap();
    }
    // The same key again does not count twice.
    effects.set("k.0".into(), large.clone()).unwrap();
    let refused = effects.set("k.8".into(), large).unwrap_err();
    assert_eq!(refused.code, "pelton-limit");

    let mut effects = collector(&state);
    for _ in 0..8 {
        effects.emit(draft(1_000_000)).unwrap();
    }
    assert_eq!(
        effects.emit(draft(1_000_000)).unwrap_err().code,
        "pelton-limit"
    );
    assert_eq!(
        effects.emit(draft(1 << 20)).unwrap_err().code,
        "pelton-limit"
    );
    effects.emit(draft(1)).unwrap();
    assert_eq!(effects.finish().emits.len(), 9);
}

#[tokio::test]
async fn malformed_keys_are_refused_everywhere() {
    let mut effects = collector(&Arc::default());
    for key in ["", "a..b", "a b", "a.*"] {
        assert_eq!(
            effects.get(key.into()).await.unwrap_err().code,
            "pelton-key-invalid"
        );
        assert_eq!(
            effects.set(key.into(), Bytes::new()).unwrap_err().code,
            "pelton-key-invalid"
        );
        assert_eq!(
            effects.delete(key.into()).unwrap_err().code,
            "pelton-key-invalid"
        );
    }
}

#[test]
fn a_subject_that_the_server_would_hang_up_on_is_refused() {
    let mut collector = collector(&Arc::new(MemoryState::default()));
    let of = |length: usize| Draft {
        subject: format!("out.{}", "a".repeat(length - "out.".len())),
        ..draft(1)
    };
    collector.emit(of(1024)).unwrap();
    let failure = collector.emit(of(1025)).unwrap_err();
    assert_eq!(failure.code, "pelton-event-invalid");
    assert!(failure.message.contains("1025"), "{}", failure.message);
}

#[test]
fn the_last_reply_counts_and_one_that_nobody_waits_for_does_not() {
    let state = Arc::default();
    let of = |text: &'static str| Bytes::from_static(text.as_bytes());
    let mut deaf = collector_of(&state, &delivery());
    deaf.reply(Some("no media type".into()), of("x")).unwrap();
    assert_eq!(deaf.finish().reply, None);

    let asked = Delivery {
        expects_reply: true,
        ..delivery()
    };
    let mut effects = collector_of(&state, &asked);
    for (kind, len, code) in [
        ("text", 1, "pelton-event-invalid"),
        ("text/plain\r\nX: y", 1, "pelton-event-invalid"),
        ("text/plain", 1 << 20, "pelton-limit"),
    ] {
        let refused = effects.reply(Some(kind.into()), vec![0; len].into());
        assert_eq!(refused.unwrap_err().code, code, "{kind:?}");
    }
    effects.reply(Some("text/plain".into()), of("one")).unwrap();
    effects.reply(None, of("2")).unwrap();
    let effects = effects.finish();
    assert_eq!(effects.bytes(), 1);
    assert_eq!(effects.reads_only().reply, None);
    let expected = Reply::Data {
        content_type: "application/json".into(),
        data: of("2"),
    };
    assert_eq!(effects.reply, Some(expected));
}

#[test]
fn an_error_takes_the_place_of_a_reply() {
    let state = Arc::default();
    let mut deaf = collector_of(&state, &delivery());
    deaf.reply_error("quote-unknown".into(), "no quote 7".into());
    assert_eq!(deaf.finish().reply, None);

    let asked = Delivery {
        expects_reply: true,
        ..delivery()
    };
    let mut effects = collector_of(&state, &asked);
    effects.reply(None, Bytes::from_static(b"1")).unwrap();
    effects.reply_error("quote-unknown".into(), "no quote 7".into());
    let failure = Failure::reject("quote-unknown", "no quote 7");
    assert_eq!(effects.finish().reply, Some(Reply::Error(failure)));
}

#[test]
fn the_time_is_when_the_message_was_stored() {
    assert_eq!(collector(&Arc::default()).now(), delivery().stored);
}

#[tokio::test]
async fn an_expired_value_is_absent_and_still_checked_at_commit() {
    let state = Arc::new(MemoryState::default());
    let past = crate::event::timestamp::now() - 1;
    let revision = state.write("gone", Write::SetUntil("x".into(), past));
    let mut effects = collector(&state);
    assert_eq!(effects.get("gone".into()).await.unwrap(), None);
    let listed = effects.list("", None, 10).await.unwrap();
    assert!(listed.is_empty(), "{listed:?}");
    assert_eq!(effects.finish().reads["gone"], revision);
}

#[tokio::test]
async fn a_value_with_a_ttl_rests_on_what_it_replaces() {
    let state = Arc::new(MemoryState::default());
    let revision = state.set("a", "stays");
    let mut effects = collector(&state);
    for ttl in [0, 999, 366 * 24 * 3600 * 1000 + 1, u64::MAX] {
        let set = effects.set_with_ttl("a".into(), "x".into(), ttl).await;
        assert_eq!(set.unwrap_err().code, "pelton-limit", "{ttl}");
    }
    let before = crate::event::timestamp::now();
    for key in ["a", "new"] {
        let set = effects.set_with_ttl(key.into(), "x".into(), 1000).await;
        set.unwrap();
        assert_eq!(effects.get(key.into()).await.unwrap(), Some("x".into()));
    }
    let effects = effects.finish();
    assert_eq!(effects.reads["a"], revision);
    assert_eq!(effects.reads["new"], 0);
    let Write::SetUntil(_, until) = &effects.writes["a"] else {
        panic!("{:?}", effects.writes);
    };
    assert!((1_000_000_000..60_000_000_000).contains(&(until - before)));
}
