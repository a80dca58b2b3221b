//! What a function's manifest and its component may not say together, and what is worth a note.

use super::plan::Planner;
use crate::config::{DeliveryMode, FunctionSettings, KeySource, OnExhausted};
use crate::event::subject::matches;
use crate::records::FunctionRecord;

impl Planner<'_> {
    /// A subject that has fewer tokens than the key's place has no key, whatever comes.
    pub(super) fn check_token(&mut self, subjects: &[String]) {
        let Some(KeySource::Token(at)) = self.declared.settings.key else {
            return;
        };
        let short = |subject: &&String| {
            let tokens = subject.split('.').count();
            !subject.ends_with('>') && tokens < usize::try_from(at).unwrap_or(usize::MAX)
        };
        let Some(subject) = subjects.iter().find(short) else {
            return;
        };
        let what = format!(
            "{subject} has no token {at}, so every event there becomes a dead letter without a key"
        );
        let fix = "count tokens from 1, those between the dots; or take the key from an attribute or the data";
        if subjects.iter().all(|subject| short(&subject)) {
            self.problem(&["key"], what, fix.into());
        } else {
            let name = self.name;
            self.notes
                .push(format!("function {name}: {what}\n  fix: {fix}"));
        }
    }

    /// All of it; `previous` is what is deployed.
    pub(super) fn check(&mut self, previous: Option<&FunctionRecord>) {
        self.check_supported();
        self.check_http();
        self.check_secrets();
        self.check_key(previous);
        self.check_sample();
        if previous.is_some_and(|one| one.controls.paused.is_some()) {
            let name = self.name;
            self.notes.push(format!(
                "function {name} is paused, and stays paused: `pelton function resume {name}` has it take events"
            ));
        }
    }

    fn check_sample(&mut self) {
        let Some(sample) = &self.declared.settings.sample else {
            return;
        };
        let handlers = &self.component.handlers;
        if !handlers
            .iter()
            .any(|one| matches(&one.subject, &sample.subject))
        {
            let all: Vec<&str> = handlers.iter().map(|one| one.subject.as_str()).collect();
            self.problem(
                &["sample"],
                format!("no handler takes the sample's subject {}", sample.subject),
                format!("write one that a handler takes: {}", all.join(", ")),
            );
        }
    }

    /// What this release has no engine for is refused, not ignored.
    fn check_supported(&mut self) {
        let settings = &self.declared.settings;
        if settings.delivery == DeliveryMode::AtLeastOnce && settings.key.is_some() {
            self.problem(
                &["key"],
                "delivery = \"at-least-once\" has no order, so `key` would order nothing".into(),
                "remove `key`, or `delivery`: the default keeps the order".into(),
            );
        }
        if settings.retry.on_exhausted == OnExhausted::Pause {
            self.problem(
                &["retry", "on-exhausted"],
                "on-exhausted = \"pause\" comes with a later release".into(),
                "say on-exhausted = \"dead-letter\"".into(),
            );
        }
    }

    /// Positions say of each partition how far it is done, and the key says which partition an event belongs to.
    fn check_key(&mut self, previous: Option<&FunctionRecord>) {
        let new = &self.declared.settings;
        let positions =
            |settings: &FunctionSettings| settings.delivery == DeliveryMode::ExactlyOnce;
        let moved = previous
            .map(|one| &one.settings)
            .is_some_and(|old| positions(old) && positions(new) && old.key != new.key);
        if moved {
            self.problem(
                &["key"],
                "`key` differs from that of the version that runs: events that are done would belong to partitions that do not know of \
                 it, and others would be passed by"
                    .into(),
                "keep `key`; or deploy twice: with delivery = \"at-least-once\" and no `key` first, which hands over what is done, then \
                 with the new `key`; or give the function another name, and `start`; `pelton dev --clean` begins anew"
                    .into(),
            );
        }
    }

    fn check_http(&mut self) {
        let imported = self
            .component
            .imports
            .iter()
            .find(|import| import.starts_with("wasi:http/"));
        if let (Some(import), true) = (imported, self.declared.settings.allow.http.is_empty()) {
            self.problem(
                &["allow", "http"],
                format!("its component imports {import}, but no host is allowed"),
                "name the hosts that it may call: http = [\"host\"] in its allow section".into(),
            );
        }
    }

    fn check_secrets(&mut self) {
        for secret in &self.declared.settings.secrets {
            self.notes.push(format!(
                "function {}: every node needs the variable PELTON_SECRET_{secret}",
                self.name
            ));
        }
    }
}
