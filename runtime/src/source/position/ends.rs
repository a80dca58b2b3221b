//! What follows when a delivery ends: its lane goes on, waits, or is another node's.

use std::time::{Duration, Instant};

use super::job::{Ended, Job};
use super::lanes::{Body, Place};
use super::round::{self, Wave};
use super::{PARK_AT_ONCE, PositionSource};
use crate::commit::Partition;
use crate::source::Settlement;

impl PositionSource {
    pub(super) fn end(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                let context = &self.context;
                tracing::error!(
                    %error,
                    app = context.names.app(),
                    function = &*context.function,
                    stream = &*context.stream,
                    "a delivery ended unexpectedly; its input is opened again"
                );
                self.broken = true;
                return;
            }
        };
        match ended {
            Ended::Round(round) => {
                self.beginning -= 1;
                self.rounds.learn(&round);
                self.end_wave(round.wave);
                for next in round.left {
                    self.jobs.spawn(next.run());
                }
            }
            Ended::Wave(wave) => self.end_wave(wave),
            other => self.end_one(other),
        }
    }

    fn end_wave(&mut self, wave: Wave) {
        for ended in wave.ended {
            self.end_one(ended);
        }
        if !wave.under_way.is_empty() {
            self.jobs.spawn(round::go_on(wave.under_way));
        }
    }

    fn end_one(&mut self, ended: Ended) {
        self.begun -= usize::from(matches!(ended, Ended::Attempt { .. }));
        match ended {
            Ended::Ahead(read) => self.ahead.end(read),
            // These are in none.
            Ended::Flushed | Ended::Round(_) | Ended::Wave(_) => {}
            Ended::Swept(leftovers) => self.sweeper.end(leftovers),
            Ended::Parked {
                partition,
                place,
                sequence,
                body,
            } if self.current(&partition, place.0) => {
                self.lanes.parked(&place, sequence, body);
            }
            Ended::Attempt {
                partition,
                place,
                sequence,
                settlement,
                body,
                left,
                version,
            } if self.current(&partition, place.0) => {
                self.lanes.give_back(&place, left, Instant::now());
                let settlement = self.by_another(settlement, version, &place);
                self.settle(place, sequence, settlement, body);
            }
            // Let go of meanwhile: what did not end is the next owner's.
            Ended::Attempt {
                partition,
                sequence,
                body,
                settlement,
                left,
                ..
            } => {
                let mut undone: Vec<u64> = left.iter().map(|one| one.sequence).collect();
                if let (Body::Read(_), Settlement::Again(_)) = (body, settlement) {
                    undone.push(sequence);
                }
                partition.abandon(&undone);
            }
            Ended::Parked {
                partition,
                sequence,
                body: Body::Read(_),
                ..
            } => partition.abandon(&[sequence]),
            _ => {}
        }
    }

    /// What a version put off that does not take events of this key any more has its next attempt at once, by the one that does: as those that
    /// waited when that one came.
    fn by_another(&self, settlement: Settlement, version: u64, place: &Place) -> Settlement {
        match settlement {
            Settlement::Parked(_, how) if self.context.pick(&place.1).record.version != version => {
                Settlement::Parked(Duration::ZERO, how)
            }
            other => other,
        }
    }

    fn settle(&mut self, place: Place, sequence: u64, settlement: Settlement, body: Body) {
        match settlement {
            Settlement::Done => self.lanes.end(&place),
            Settlement::Again(after) => {
                self.lanes
                    .again(place, sequence, body, Instant::now() + after)
            }
            Settlement::Parked(after, how) => {
                self.lanes
                    .put_back(place.clone(), sequence, how, Instant::now() + after);
                self.park_blocked(&place);
            }
            Settlement::Lost => self.lose(place.0),
        }
    }

    pub(super) fn lose(&mut self, partition: u16) {
        tracing::info!(
            app = self.context.names.app(),
            function = &*self.context.function,
            partition,
            stream = self.context.input.stream,
            "another node has taken the partition over"
        );
        self.claims.lose(partition);
        self.upcoming.drop_partition(partition);
        self.lanes.drop_partition(partition);
    }

    pub(super) fn park_blocked(&mut self, place: &Place) {
        let Some(partition) = self.claims.get(place.0) else {
            return;
        };
        for message in self.lanes.blocked(place, PARK_AT_ONCE) {
            let job = Job {
                context: self.context.clone(),
                worker: self.context.pick(&place.1),
                partition: partition.clone(),
                place: place.clone(),
                sequence: message.sequence,
            };
            self.jobs.spawn(job.park(message));
        }
    }

    /// Whether this hold on a partition is still the one that counts.
    fn current(&self, partition: &Partition, number: u16) -> bool {
        self.claims
            .get(number)
            .is_some_and(|held| held.is(partition))
    }
}
