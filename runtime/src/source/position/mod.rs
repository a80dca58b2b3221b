//! The position engine's source: no acks. A function's input is divided into partitions; each has a position in the commit stream that
//! says what of it is done, and is handed out by the one node that claimed it.
//!
//! `owner` says who should hold a partition, `claims` who does, `lanes` keeps the order per key, `job` is one delivery on its way,
//! and the loop here reads the input once for all of them.

mod ahead;
mod claims;
mod context;
mod due;
mod ends;
mod input;
mod internal;
mod job;
mod lanes;
mod owner;
mod park;
mod reader;
mod revived;
mod round;
mod tick;
mod timer;
mod upcoming;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::ahead::Ahead;
pub(crate) use self::ahead::Habits;
use self::claims::Claims;
pub(crate) use self::context::{Context, OpenContext};
use self::input::{check_stream, created};
pub(crate) use self::internal::InternalInputs;
use self::internal::{Incoming, next};
use self::job::{Ended, Job};
use self::lanes::{Body, Lanes};
pub(crate) use self::owner::PARTITIONS;
use self::owner::{partition_at, partition_of};
use self::park::Sweeper;
use self::round::Next;
use self::upcoming::Upcoming;
use super::SourceError;
use super::queue::stream_error;
use crate::call;
use crate::commit::Partition;
use crate::config::KeySource;
use crate::event::{self, Message};
use crate::members::Members;
use crate::names::AppNames;
use crate::nats::is_full;
use crate::route::Route;
use crate::series::MAX_SERIES;

/// Messages read ahead and not under way, for one input.
const READ_AHEAD: usize = 2048;
/// Deliveries of one input that are under way: in handlers, waiting for their commit, or on their way into the park.
const UNDER_WAY: usize = 4096;
/// With so many begun, two full batches and more, it is their commits that are waited for: then handlers run on one thread at a time, and
/// leave the others to what commits need, here and in a server on the same machine.
const AHEAD: usize = 1024;
/// Messages taken, and ends of deliveries, before the loop looks at the others again.
const AT_ONCE: usize = 64;
/// Followers of one failing delivery that are parked at the same time.
const PARK_AT_ONCE: usize = 64;
/// How often positions that only advance are written, and claims looked at.
const TICK: Duration = Duration::from_millis(100);
/// How often partitions of others are looked at: a lease ends after three seconds.
const CLAIMS: Duration = Duration::from_millis(250);
/// So many messages behind an unreadable one are read one by one: unreadable ones come in company,
/// and
/// each would break the connection.
const CAREFUL: u32 = 64;
/// For so long an input that cannot be read is waited for; then it is opened anew, and why is told.
const OUTAGE: Duration = Duration::from_secs(30);
/// A reader that is at the end of its input for so long has not been given a copy of it that lags behind.
const AT_END: Duration = Duration::from_secs(3);
/// How often positions are written of partitions that had nothing to do while the input went on.
const NOTES: Duration = Duration::from_secs(2);

/// The partition that a message belongs to.
pub(crate) fn partition(key: Option<&KeySource>, message: &Message) -> u16 {
    match key.and_then(|source| event::key(source, message)) {
        Some(key) => partition_of(&key),
        None => partition_at(message.sequence),
    }
}

/// Opens the first reader of an internal input. Returns it with whether partitions are claimed at
/// once.
async fn begin(context: &Context) -> Result<(Option<Incoming>, bool), SourceError> {
    if !context.internal {
        return Ok((None, true));
    }
    // Read first: what is parked and removed meanwhile is found in the park.
    let reader = Incoming::open(context, 1).await?;
    tick::arm(context).await?;
    Ok((Some(reader), park::any(context).await?))
}

/// The partition that a message of an internal input belongs to.
pub(crate) fn partition_of_due(key: Option<&KeySource>, message: &Message) -> u16 {
    match due::key(message) {
        Some("") => partition_at(message.sequence),
        Some(key) => partition_of(key),
        None => partition(key, message),
    }
}

/// One input of one function on one node.
pub(crate) struct PositionSource {
    context: Arc<Context>,
    members: watch::Receiver<Members>,
    claims: Claims,
    lanes: Lanes,
    /// Up to here the input was handed out.
    passed: Arc<AtomicU64>,
    /// In the park, and not in their lanes yet.
    upcoming: Upcoming,
    /// Since when nothing is left to read.
    at_end: Option<Instant>,
    /// The latest message that was read, and when it was stored, nanoseconds since 1970.
    seen: (u64, i64),
    reader: Option<Incoming>,
    /// Since when there is no reader that there should be.
    unread: Option<Instant>,
    /// Messages that are still read one by one, for an unreadable one came before them.
    careful: u32,
    /// Read, and waiting for room in its partition.
    stalled: Option<Message>,
    jobs: JoinSet<Ended>,
    /// Deliveries that were begun and have not ended.
    begun: usize,
    /// Rounds that have not ended.
    beginning: usize,
    /// Something is ready and every handler is busy.
    starved: bool,
    /// A delivery is not accounted for.
    broken: bool,
    /// Whether partitions are to be claimed: of an internal input not before something is due or parked; until then it costs nothing.
    awake: bool,
    /// Claims were made without an error, and all that was gained is read.
    looked: bool,
    claimed_at: Instant,
    noted_at: Instant,
    sweeper: Sweeper,
    rounds: round::Size,
    ahead: Ahead,
    /// Tells of other versions.
    turns: Route,
}

impl PositionSource {
    pub(crate) async fn open(
        context: OpenContext,
        members: watch::Receiver<Members>,
        abort: CancellationToken,
    ) -> Result<Self, SourceError> {
        let OpenContext {
            route,
            input,
            node,
            nats,
            inputs,
            state,
            internal_inputs,
        } = context;
        let stream = nats.jetstream().get_stream(&input.stream).await;
        let stream = stream.map_err(|error| stream_error(&input.stream, &error))?;
        check_stream(&input, stream.cached_info())?;
        let stream_created = created(stream.cached_info());
        let worker = route.worker();
        let names = AppNames::new(worker.record.app.as_str());
        let internal = internal_inputs.is_some();
        let owner = format!("{node}:{}", uuid::Uuid::new_v4().simple());
        let context = Context {
            stream: input.stream.as_str().into(),
            function: worker.name.clone(),
            key: worker.record.settings.key.clone(),
            committer: worker.committer.clone(),
            handlers: worker.handlers.clone(),
            route,
            input,
            node,
            owner,
            names,
            nats,
            inputs,
            state,
            stream_created,
            internal,
            internal_inputs,
            abort,
        };
        let (reader, awake) = begin(&context).await?;
        Ok(Self {
            turns: context.route.clone(),
            context: Arc::new(context),
            members,
            claims: Claims::default(),
            lanes: Lanes::default(),
            passed: Arc::new(AtomicU64::new(u64::MAX)),
            upcoming: Upcoming::default(),
            at_end: None,
            seen: (0, 0),
            reader,
            unread: None,
            careful: 0,
            stalled: None,
            jobs: JoinSet::new(),
            begun: 0,
            beginning: 0,
            starved: false,
            broken: false,
            awake,
            looked: false,
            claimed_at: Instant::now(),
            noted_at: Instant::now(),
            sweeper: Sweeper::default(),
            rounds: round::Size::default(),
            ahead: Ahead::default(),
        })
    }

    /// Runs until `stop`, waits for deliveries under way and releases the partitions. Calls `well`
    /// once the input can be read, or the node owns none of its partitions.
    pub(crate) async fn run(
        mut self,
        stop: &CancellationToken,
        well: impl Fn(),
    ) -> Result<(), SourceError> {
        let ended = self.serve(stop, well).await;
        self.reader = None;
        // What waits is the next owner's, and so is each partition as soon as nothing of it is under way.
        for (number, partition) in self.claims.leave() {
            self.upcoming.drop_partition(number);
            partition.abandon(&self.lanes.drop_partition(number));
        }
        self.claims.let_go(&self.context).await;
        while let Some(ended) = self.jobs.join_next().await {
            self.end(ended);
            self.claims.let_go(&self.context).await;
        }
        self.claims.let_go_of_all(&self.context).await;
        ended
    }

    async fn serve(
        &mut self,
        stop: &CancellationToken,
        well: impl Fn(),
    ) -> Result<(), SourceError> {
        let mut said = false;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if !said && (self.reader.is_some() || self.looked) {
                said = true;
                well();
            }
            if let Some(message) = self.stalled.take() {
                self.hand_out(message);
            }
            self.admit();
            self.start_jobs(None);
            if self.broken {
                return Err(SourceError("a delivery ended unexpectedly".into()));
            }
            let can_read = self.has_room();
            let handlers = self.context.handlers.clone();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                Some(ended) = self.jobs.join_next() => self.end_all(ended),
                message = next(&mut self.reader, &self.context.stream), if can_read => self.read_all(message),
                permit = handlers.acquire_owned(), if self.starved => self.start_jobs(permit.ok()),
                () = until(self.lanes.next_due()) => {}
                () = self.turns.turned() => self.lanes.hurry(Instant::now()),
                _ = tick.tick() => self.tick().await?,
            }
        }
    }

    async fn tick(&mut self) -> Result<(), SourceError> {
        let all = self.noted_at.elapsed() >= NOTES;
        if all {
            self.noted_at = Instant::now();
        }
        for partition in self
            .claims
            .all()
            .filter(|one| (one.is_dirty() || all && one.is_behind()) && one.start_flush())
        {
            self.jobs
                .spawn(job::flush(self.context.clone(), partition.clone()));
        }
        self.read_on().await?;
        self.admit();
        if let Some(sweep) = self.sweeper.start(&self.context, self.claims.held()) {
            self.jobs.spawn(sweep);
        }
        // A flush may have found it out, with nothing of the partition under way here.
        for partition in self.claims.lost() {
            self.lose(partition);
        }
        if !self.awake || self.claimed_at.elapsed() < CLAIMS {
            return Ok(());
        }
        self.claimed_at = Instant::now();
        let members = self.members.borrow().clone();
        if !members.is_complete() {
            return Ok(());
        }
        for (number, partition) in self.claims.yield_to(&self.context, &members) {
            // What runs may end; what waits is the next owner's. Nothing may be passed by as done.
            self.upcoming.drop_partition(number);
            partition.abandon(&self.lanes.drop_partition(number));
        }
        self.claims.let_go(&self.context).await;
        let gained = self
            .claims
            .gain(&self.context, &members, &self.passed)
            .await?;
        if gained.busy {
            // With the next tick.
            let due = self.claimed_at.checked_sub(CLAIMS);
            self.claimed_at = due.unwrap_or(self.claimed_at);
            return Ok(());
        }
        for (place, sequence) in gained.parked {
            self.upcoming.push(place, sequence);
        }
        if !gained.partitions.is_empty() {
            // Not where these begin: what was claimed a moment ago may still have to be read from further back.
            let from = self.passed.load(Ordering::Acquire);
            tracing::debug!(stream = self.context.input.stream, partitions = ?gained.partitions, from, "claimed");
            self.read_from(from).await?;
        }
        self.looked = true;
        Ok(())
    }

    /// Puts those parked ones into their lanes before which there is nothing left to read.
    fn admit(&mut self) {
        if self.upcoming.is_empty() {
            return;
        }
        let Some(reader) = &self.reader else { return };
        let passed = self.passed.load(Ordering::Acquire);
        let mut up_to = passed.max(reader.first().saturating_sub(1));
        self.at_end = match reader.is_at_end() && self.stalled.is_none() {
            true => self.at_end.or_else(|| Some(Instant::now())),
            false => None,
        };
        if self.at_end.is_some_and(|since| since.elapsed() > AT_END) {
            up_to = u64::MAX;
        }
        for (place, sequence) in self.upcoming.up_to(up_to) {
            if self.claims.get(place.0).is_some() {
                self.lanes.push_parked(place, sequence, Instant::now());
            }
        }
    }

    async fn read_from(&mut self, passed: u64) -> Result<(), SourceError> {
        self.stalled = None;
        self.reader = Some(Incoming::open(&self.context, passed + 1).await?);
        (self.unread, self.at_end) = (None, None);
        Ok(())
    }

    /// Reads on where the reader was lost.
    async fn read_on(&mut self) -> Result<(), SourceError> {
        let Some(since) = self.unread else {
            return Ok(());
        };
        let passed = self.passed.load(Ordering::Acquire);
        // Nothing is claimed: of an internal input all is looked at, whether anything is due.
        let from = if passed == u64::MAX { 0 } else { passed };
        let read = match self
            .context
            .misfit(self.seen.max(self.claims.witness()))
            .await
        {
            Ok(None) => self.step_over(from).await,
            // It may have been away because it is another one now.
            Ok(Some(misfit)) => return Err(misfit),
            Err(error) => Err(error),
        };
        match read {
            // The limit of consumers does not pass by itself.
            Err(error) if since.elapsed() < OUTAGE && !is_full(&error.0) => {
                tracing::debug!(%error, "not readable yet");
                Ok(())
            }
            other => other,
        }
    }

    /// Reads on behind what may have broken the connection: message by message through the JSON API
    /// until [`CAREFUL`] in a row were readable, then with a reader. An unreadable one is handed
    /// out
    /// as what could be read of it.
    async fn step_over(&mut self, mut from: u64) -> Result<(), SourceError> {
        if self.context.internal {
            // The shared reader does so.
            return self.read_from(from).await;
        }
        for _ in 0..CAREFUL {
            if !self.has_room() {
                return Ok(());
            }
            let Some(stored) = self.context.read_behind(from).await? else {
                return self.read_from(from).await;
            };
            if let Some(why) = &stored.unreadable {
                let (stream, sequence) = (&*self.context.stream, stored.sequence);
                tracing::warn!(stream, sequence, why, "a message is unreadable");
                self.careful = CAREFUL;
            } else if self.careful == 0 {
                return self.read_from(from).await;
            }
            self.careful = self.careful.saturating_sub(1);
            from = stored.sequence;
            self.read(Ok(stored.into_message(&self.context.stream)));
        }
        Ok(())
    }

    /// Whether another message may be read.
    fn has_room(&self) -> bool {
        let under_way = self.begun + self.jobs.len();
        let room = self.lanes.held() < READ_AHEAD && under_way < UNDER_WAY;
        self.stalled.is_none() && room
    }

    /// What has been read, and what else is here already.
    fn read_all(&mut self, message: Result<Message, String>) {
        self.read(message);
        for _ in 1..AT_ONCE {
            let message = match self.has_room() {
                true => next(&mut self.reader, &self.context.stream).now_or_never(),
                false => None,
            };
            let Some(message) = message else { return };
            self.read(message);
        }
    }

    /// What has ended, and what else has.
    fn end_all(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        self.end(ended);
        for _ in 1..AT_ONCE {
            let Some(ended) = self.jobs.try_join_next() else {
                return;
            };
            self.end(ended);
        }
    }

    fn read(&mut self, message: Result<Message, String>) {
        let mut message = match message {
            Ok(message) => message,
            Err(why) => {
                tracing::debug!(
                    stream = self.context.input.stream,
                    why,
                    "the reader is lost"
                );
                self.reader = None;
                self.unread = Some(Instant::now());
                return;
            }
        };
        self.seen = self.seen.max((message.sequence, message.stored));
        if self.context.internal {
            if call::is_left(&message.headers) {
                self.passed.fetch_max(message.sequence, Ordering::AcqRel);
                return;
            }
            message = due::open(message);
            if !std::mem::replace(&mut self.awake, true) {
                let due = self.claimed_at.checked_sub(CLAIMS);
                self.claimed_at = due.unwrap_or(self.claimed_at);
            }
        }
        if message.sequence > self.passed.load(Ordering::Acquire) {
            self.hand_out(message);
        }
    }

    /// Puts a message into its lane if its partition is ours and wants it.
    fn hand_out(&mut self, message: Message) {
        let sequence = message.sequence;
        if self.context.internal || self.context.handles(&message.subject) {
            let place = self.context.place(&message);
            self.remove_done(place.0, &message);
            if let Some(partition) = self.claims.get(place.0).filter(|one| one.wants(sequence)) {
                if !partition.has_room() {
                    self.stalled = Some(message);
                    return;
                }
                partition.begin(sequence);
                if let Some(key) = place.1.name() {
                    let worker = self.context.worker();
                    self.ahead
                        .note(&worker.habits, worker.committer.state(), key);
                }
                self.lanes.push(place.clone(), message, Instant::now());
                self.park_blocked(&place);
            }
        }
        self.passed.store(sequence, Ordering::Release);
    }

    /// A message of an internal input that was left where it lay when it was done.
    fn remove_done(&mut self, partition: u16, message: &Message) {
        let done = |one: &Partition| {
            let at = message.sequence;
            // A call that waits in the park stays.
            self.context.internal && one.is_done(at) && !one.is_parked(at)
        };
        if self.claims.get(partition).is_some_and(done) {
            self.jobs
                .spawn(job::remove(self.context.clone(), message.clone()));
        }
    }

    fn start_jobs(&mut self, mut permit: Option<OwnedSemaphorePermit>) {
        self.starved = false;
        let ahead = self.begun >= AHEAD;
        if ahead && self.beginning > 0 {
            return;
        }
        let now = Instant::now();
        // One look where there is one version.
        let only = self.context.route.is_plain().then(|| self.context.worker());
        let mut begun = Vec::new();
        while !ahead || begun.len() < round::MAX {
            let handlers = &self.context.handlers;
            let Some(given) = permit
                .take()
                .or_else(|| handlers.clone().try_acquire_owned().ok())
            else {
                self.starved = self.lanes.has_ready();
                break;
            };
            let Some((place, waiting)) = self.lanes.take(now) else {
                break;
            };
            let Some(partition) = self.claims.get(place.0) else {
                continue;
            };
            let worker = only.clone();
            let worker = worker.unwrap_or_else(|| self.context.pick(&place.1));
            let more = match waiting.body {
                Body::Read(_) if self.context.gathers(&worker) => {
                    self.lanes.take_more(&place, MAX_SERIES - 1, now)
                }
                _ => Vec::new(),
            };
            let job = Job {
                context: self.context.clone(),
                worker,
                partition: partition.clone(),
                place,
                sequence: waiting.sequence,
            };
            begun.push(Next {
                job,
                body: waiting.body,
                more,
                permit: given,
            });
        }
        if let Some(keys) = self.ahead.start(self.context.committer.state()) {
            self.jobs.spawn(job::read_ahead(self.context.clone(), keys));
        }
        self.begun += begun.len();
        let parts = if ahead { 1 } else { round::threads() };
        for some in self.rounds.divide(begun, parts) {
            self.beginning += 1;
            self.jobs.spawn(round::begin(some));
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
