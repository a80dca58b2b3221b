//! The inputs of a function, as far as a plan goes: which streams, whether its delivery can take from them, where to begin.

use super::coverage::{self, cover};
use super::plan::{InputAction, InputPlan, Planner};
use super::survey::Retention;
use crate::config::{DeliveryMode, Start};
use crate::records::{FunctionRecord, Input};

impl Planner<'_> {
    pub(super) fn inputs(&mut self, subjects: &[String]) -> Vec<Input> {
        let mut parts = Vec::new();
        for subject in subjects {
            let covered = cover(subject, self.streams);
            if covered.parts.is_empty() {
                self.problem(
                    &["subjects"],
                    format!(
                        "no stream covers {subject}, so no such event would ever be kept or handled"
                    ),
                    format!("declare one: [streams.NAME] with subjects = [\"{subject}\"]"),
                );
            } else if !covered.whole {
                self.notes.push(format!(
                    "function {}: only a part of {subject} is covered by streams: {}",
                    self.name,
                    covered
                        .parts
                        .iter()
                        .flat_map(|(_, subjects)| subjects.clone())
                        .collect::<Vec<_>>()
                        .join(", ")
                ));
            }
            parts.extend(covered.parts);
        }
        let mut inputs = coverage::inputs(parts);
        if let Some((one, other)) = coverage::entangled(&inputs) {
            let (what, fix) = (
                format!(
                    "its subjects {one} and {other} have some in common, which a consumer cannot take"
                ),
                format!(
                    "name one pattern that covers both, such as {}",
                    wider(one, other)
                ),
            );
            self.problem(&["subjects"], what, fix);
        }
        for input in &mut inputs {
            if self.check_retention(input) {
                self.check_start(input);
            }
            self.carry_start(input);
        }
        inputs
    }

    /// Where to begin has to be said when there is a choice, and a work queue leaves none.
    fn check_start(&mut self, input: &Input) {
        let Some(stream) = self.streams.get(&input.stream) else {
            return;
        };
        let start = self.declared.settings.start.as_ref();
        if stream.retention == Retention::WorkQueue {
            if matches!(start, Some(Start::New | Start::Time(_))) {
                self.problem(
                    &["start"],
                    format!(
                        "stream {} is a work queue: its messages wait until they are handled",
                        input.stream
                    ),
                    "say start = \"all\", or leave it out".into(),
                );
            }
            return;
        }
        if start.is_none() && self.known(&input.stream).is_none() && stream.messages > 0 {
            self.problem(
                &["start"],
                format!(
                    "stream {} holds {} messages already; shall they be handled?",
                    input.stream, stream.messages
                ),
                "say start = \"all\" (from the first one), \"new\" (only what comes) or a time"
                    .into(),
            );
        }
    }

    /// The position engine begins where the first deploy said, unless the stream is another one since.
    fn carry_start(&self, input: &mut Input) {
        input.resets = self.known(&input.stream).map_or(0, |known| known.resets);
        if self.declared.settings.delivery != DeliveryMode::ExactlyOnce {
            return;
        }
        let stream = self.streams.get(&input.stream);
        input.created = stream.map_or(0, |stream| stream.created);
        if let Some(known) = self.known(&input.stream) {
            (input.start, input.begun) = (known.start, known.begun);
        }
    }

    /// The input as it is deployed, if that is about the same stream.
    fn known(&self, stream: &str) -> Option<&Input> {
        let deployed = &self.view.functions.get(self.name)?.record.inputs;
        let known = deployed.iter().find(|known| known.stream == stream)?;
        let created = self.streams.get(stream).map_or(0, |stream| stream.created);
        (known.created == 0 || known.created == created).then_some(known)
    }

    /// Positions do not remove messages, and what is removed when others acked it cannot be read at one's own pace.
    fn check_retention(&mut self, input: &Input) -> bool {
        let Some(stream) = self.streams.get(&input.stream) else {
            return true;
        };
        let how = match stream.retention {
            Retention::Limits => return true,
            Retention::Interest => "interest",
            Retention::WorkQueue => "workqueue",
        };
        if self.declared.settings.delivery == DeliveryMode::AtLeastOnce {
            return true;
        }
        self.problem(
            &["delivery"],
            format!(
                "stream {} removes messages when they are acked (retention {how}), and delivery = \"exactly-once\" acks nothing",
                input.stream
            ),
            "say delivery = \"at-least-once\", or use a stream with retention = limits".into(),
        );
        false
    }

    pub(super) fn input_plans(&self, record: &FunctionRecord) -> Vec<InputPlan> {
        let previous = self.view.functions.get(self.name);
        let before = previous.map_or(&[] as &[Input], |one| &one.record.inputs);
        let acks = self.declared.settings.delivery == DeliveryMode::AtLeastOnce;
        let entry = |input: &Input, action| InputPlan {
            stream: input.stream.clone(),
            consumer: acks.then(|| self.names.consumer(self.name, record.instance)),
            action,
            subjects: input.subjects.clone(),
        };
        let wanted = record.inputs.iter().map(|input| {
            let action = match before.iter().find(|old| old.stream == input.stream) {
                None => InputAction::Create,
                Some(old) if old.subjects == input.subjects => InputAction::Keep,
                Some(_) => InputAction::Update,
            };
            entry(input, action)
        });
        let gone = before
            .iter()
            .filter(|old| !record.inputs.iter().any(|input| input.stream == old.stream))
            .map(|old| entry(old, InputAction::Remove));
        wanted.chain(gone).collect()
    }
}

/// A pattern that covers two others: equal tokens stay, `*` where they differ, `>` where one ends.
fn wider(one: &str, other: &str) -> String {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    let mut tokens = Vec::new();
    loop {
        match (one.next(), other.next()) {
            (None, None) => break,
            (Some(a), Some(b)) if a == b => tokens.push(a),
            (Some(a), Some(b)) if a != ">" && b != ">" => tokens.push("*"),
            _ => {
                tokens.push(">");
                break;
            }
        }
    }
    tokens.join(".")
}
