//! The order of handlers in a component, of lists in the manifest, in stored records and in the
//! server's answers means nothing.

use serde_json::{Value, json};

use super::*;
use crate::component::{self, Component};
use crate::control::deploy::survey::seen;
use crate::records::FunctionRecord;
use crate::sandbox::guests::Guest;

/// What each list of the test holds.
const HANDLERS: [&str; 4] = ["orders.*.created", "orders.*.paid", "audit.>", "mail.in"];
const STREAM: [&str; 4] = ["orders.>", "mail.>", "audit.>", "other.>"];
const EMIT: [&str; 4] = ["other.b", "other.a", "mail.out", "orders.*.failed"];
const HOSTS: [&str; 4] = ["d.example", "a.example:1", "c.example", "b.example"];
const SECRETS: [&str; 4] = ["D", "B", "A", "C"];

/// All orders of four things.
fn permutations() -> Vec<[usize; 4]> {
    let all = (0..256).map(|n| [n / 64, n / 16 % 4, n / 4 % 4, n % 4]);
    all.filter(|order| (0..4).all(|n| order.contains(&n)))
        .collect()
}

fn in_order(list: [&str; 4], order: [usize; 4]) -> [&str; 4] {
    order.map(|n| list[n])
}

fn listed(list: [&str; 4], order: [usize; 4]) -> String {
    json!(in_order(list, order)).to_string()
}

fn app(order: [usize; 4], given: bool) -> Manifest {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pelton.toml");
    let subjects = match given {
        true => format!("subjects = {}\n", listed(HANDLERS, order)),
        false => String::new(),
    };
    let text = format!(
        "pelton = 1\napp = \"shop\"\n[streams.S]\nsubjects = {}\n\
         [functions.orders]\ncomponent = \"orders\"\nsecrets = {}\n{subjects}\
         [functions.orders.allow]\nemit = {}\nhttp = {}\n",
        listed(STREAM, order),
        listed(SECRETS, order),
        listed(EMIT, order),
        listed(HOSTS, order),
    );
    std::fs::write(&file, text).unwrap();
    Manifest::load(&file, None).unwrap()
}

fn built(bare: &[u8], order: [usize; 4]) -> BTreeMap<String, Component> {
    let handlers = in_order(HANDLERS, order).map(|subject| Handler {
        handler: subject.replace(['.', '*', '>'], "_"),
        subject: subject.into(),
    });
    let component = component::add_handlers(bare, &handlers).unwrap();
    BTreeMap::from([("orders".into(), component)])
}

/// Turns every list of subjects, handlers, hosts and secrets around.
fn reversed(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let lists = ["subjects", "handlers", "emit", "http", "secrets"];
                if let (true, Value::Array(list)) = (lists.contains(&name.as_str()), &mut *value) {
                    list.reverse();
                }
                reversed(value);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(reversed),
        _ => {}
    }
}

/// What the server holds: written by a release that kept lists as they came.
fn stored(plan: &Plan, order: [usize; 4]) -> View {
    let mut view = applied(plan, View::default());
    for function in view.functions.values_mut() {
        let mut record = serde_json::to_value(&function.record).unwrap();
        reversed(&mut record);
        function.record = serde_json::from_value::<FunctionRecord>(record).unwrap();
    }
    let info = json!({ "config": {
        "subjects": in_order(STREAM, order), "metadata": { "pelton-app": "shop" },
        "num_replicas": 1, "duplicate_window": 120_000_000_000_u64,
    }});
    view.streams.insert("S".into(), seen(&info).unwrap());
    view
}

#[test]
fn the_order_of_any_list_is_no_change_and_no_obstacle_to_a_canary() {
    let bare = component::read(&Guest::new("").module()).unwrap().bytes;
    let orders = permutations();
    assert_eq!(orders.len(), 24);
    for given in [false, true] {
        let first = planned(
            &app(orders[0], given),
            &built(&bare, orders[0]),
            &View::default(),
        )
        .unwrap();
        for order in &orders {
            let view = stored(&first, *order);
            let next = planned(&app(*order, given), &built(&bare, *order), &view).unwrap();
            let function = &next.functions[0];
            let changes = function.changes.iter().map(|one| one.what.as_str());
            let rebuilt = (*order != orders[0]).then_some("component");
            assert!(changes.eq(rebuilt), "{order:?}: {:?}", function.changes);
            assert_eq!(function.obstacle(), None, "{order:?}");
            let keeps = |input: &InputPlan| input.action == InputAction::Keep;
            assert!(function.inputs.iter().all(keeps), "{:?}", function.inputs);
            assert_eq!(next.streams[0].action, StreamAction::Keep, "{order:?}");
        }
    }
}

#[test]
fn subjects_that_differ_are_still_an_obstacle() {
    let bare = component::read(&Guest::new("").module()).unwrap().bytes;
    let order = [0, 1, 2, 3];
    let manifest = app(order, false);
    let first = planned(&manifest, &built(&bare, order), &View::default()).unwrap();
    let mut fewer = built(&bare, order);
    fewer.get_mut("orders").unwrap().handlers.remove(0);
    let next = planned(&manifest, &fewer, &stored(&first, order)).unwrap();
    assert_eq!(
        next.functions[0].obstacle(),
        Some("it takes other subjects")
    );
}
