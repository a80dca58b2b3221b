//! Environments of one manifest that meet on one account.

use super::*;

const TEXT: &str = "pelton = 1\napp = \"shop\"\n[streams.ORDERS]\nsubjects = [\"orders.>\"]\n\
    [functions.orders]\ncomponent = \"orders\"\n\
    [env.staging]\napp = \"shop-staging\"\n\
    [env.production.functions.orders]\nconcurrency = 8\n";

fn of(environment: Option<&str>) -> Manifest {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pelton.toml");
    std::fs::write(&file, TEXT).unwrap();
    Manifest::load(&file, environment).unwrap()
}

fn notes(manifest: &Manifest, subjects: &[&str], view: &View) -> Vec<String> {
    planned(manifest, &component(subjects), view).unwrap().notes
}

#[test]
fn a_manifest_knows_the_apps_of_its_other_environments() {
    let staging = of(Some("staging"));
    assert_eq!(staging.environment.as_deref(), Some("staging"));
    assert_eq!(staging.siblings, BTreeMap::from([("shop".into(), None)]));
    let siblings = BTreeMap::from([("shop-staging".into(), Some("staging".into()))]);
    assert_eq!(of(None).siblings, siblings);
    assert_eq!(of(Some("production")).siblings, siblings);
}

#[test]
fn another_environment_of_the_same_app_is_said_to_be_replaced() {
    let base = planned(&of(None), &component(&["orders.>"]), &View::default()).unwrap();
    let view = applied(&base, View::default());
    let told = notes(&of(Some("production")), &["orders.>"], &view);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("deployed on this account without --env, and this deploy with --env production replaces function orders"),
        "{told:?}"
    );
    assert!(notes(&of(None), &["orders.*"], &view).is_empty());
    let production = of(Some("production"));
    let next = planned(&production, &component(&["orders.>"]), &view).unwrap();
    let view = applied(&next, view);
    assert!(notes(&production, &["orders.*"], &view).is_empty());
}

#[test]
fn events_that_two_environments_of_one_account_handle_are_told() {
    let base = planned(&of(None), &component(&["orders.*.paid"]), &View::default()).unwrap();
    let deployed = applied(&base, View::default());
    let view = View {
        siblings: vec![deployed.functions["orders"].record.clone()],
        streams: deployed.streams.clone(),
        ..View::default()
    };
    let told = notes(&of(Some("staging")), &["orders.>"], &view);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains(
            "app shop, deployed on this account without --env, reads the same events of ORDERS"
        ),
        "{told:?}"
    );
    assert!(notes(&of(Some("staging")), &["orders.*.created"], &view).is_empty());
}
