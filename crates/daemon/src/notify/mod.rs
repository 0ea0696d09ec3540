//! Telling people and other programs what happens: pings of Healthchecks, requests to webhooks, letters.
//!
//! [`Notifier::tell`] puts an event into the queue of each receiver that wants it, and returns: no receiver holds up the daemon, or
//! another one. All receivers are served by one thread, each by a task of its own. A queue is bounded: when it is full the oldest
//! event goes, and is counted. What is not taken is sent again after a pause that doubles; each attempt has a time-out; redirects
//! are not followed; of an answer no more is read than a line for a person.
//!
//! An event may arrive twice (its answer was lost), and out of turn never: a receiver gets one after the other. Nothing here is kept
//! over a restart: what is wrong then is raised again by who finds it.

mod healthchecks;
mod http;
mod mail;
mod queue;
#[cfg(test)]
mod tests;
mod webhook;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use keyframe_policy::{EventKind, Notify, PolicyName};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::event::Event;
use queue::{Batch, Queue};

/// After how many attempts that failed a person is told.
const TOLD_AFTER: u32 = 3;

/// How long things take.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// The longest that an attempt takes.
    attempt: Duration,
    /// The pause after the first attempt that failed; it doubles.
    first_pause: Duration,
    /// The longest pause.
    longest_pause: Duration,
    /// For how long an event is tried.
    give_up: Duration,
    /// How often one that is refused is tried.
    refusals: u32,
    /// For how long events are gathered for one letter.
    gather: Duration,
    /// How many events wait for a receiver.
    waiting: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            attempt: Duration::from_secs(10),
            first_pause: Duration::from_secs(2),
            longest_pause: Duration::from_secs(300),
            give_up: Duration::from_secs(24 * 3600),
            refusals: 3,
            gather: Duration::from_secs(60),
            waiting: 256,
        }
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Attempt {
    /// It was taken.
    Taken,
    /// It was not; perhaps later, but not before `after`.
    Later { why: String, after: Option<Duration> },
    /// It was refused: sending the same again will not change that.
    Refused { why: String },
}

impl Attempt {
    fn later(why: impl Into<String>) -> Self {
        Self::Later { why: why.into(), after: None }
    }
}

/// Who is told, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
enum To {
    Healthchecks(keyframe_policy::Healthchecks),
    Webhook(keyframe_policy::Webhook),
    Mail(keyframe_policy::Mail),
}

impl To {
    fn all(settings: &Notify) -> Vec<Self> {
        let pings = settings.healthchecks.iter().cloned().map(Self::Healthchecks);
        let requests = settings.webhooks.iter().cloned().map(Self::Webhook);
        let letters = settings.mail.iter().cloned().map(Self::Mail);
        pings.chain(requests).chain(letters).collect()
    }

    /// As a person is told of it. An address may be a secret: no more than its host is shown.
    fn shown(&self) -> String {
        match self {
            Self::Healthchecks(check) => format!("the check at {}", http::host_of(&check.url)),
            Self::Webhook(hook) => format!("the webhook at {}", http::host_of(&hook.url)),
            Self::Mail(mail) => format!("the mail server {} (to {})", mail.server, mail.to.join(", ")),
        }
    }

    fn wants(&self, event: &Event) -> bool {
        match self {
            Self::Healthchecks(check) => healthchecks::wants(check, event),
            Self::Webhook(hook) => webhook::wants(hook, event),
            Self::Mail(mail) => mail::wants(mail, event),
        }
    }

    /// How many events are sent at once, and for how long they are gathered.
    fn gathers(&self, pace: &Pace) -> (usize, Duration) {
        if matches!(self, Self::Mail(_)) { (mail::MOST, pace.gather) } else { (1, Duration::ZERO) }
    }

    async fn attempt(&self, client: &mut http::Client, batch: &Batch) -> Attempt {
        match self {
            Self::Healthchecks(check) => healthchecks::attempt(check, client, batch).await,
            Self::Webhook(hook) => webhook::attempt(hook, client, batch).await,
            Self::Mail(mail) => mail::attempt(mail, mail::Security::of(mail), batch).await,
        }
    }
}

/// Whether one of these kinds, or any if there is none, is it.
fn is_among(kinds: &[EventKind], event: &Event) -> bool {
    kinds.is_empty() || kinds.contains(&event.what)
}

/// Whether an event belongs to one of these policies.
fn is_of(policies: &[PolicyName], event: &Event) -> bool {
    let named = |policy: &String| policies.iter().any(|known| known.as_str() == policy);
    policies.is_empty() || event.policy.as_ref().is_some_and(named)
}

#[derive(Debug)]
struct Receiver {
    to: To,
    queue: Queue,
    task: AbortHandle,
}

/// Tells whoever is to be told.
#[derive(Debug)]
pub struct Notifier {
    pace: Pace,
    receivers: Mutex<Vec<Receiver>>,
    /// The thread that serves them; or why there is none.
    thread: Result<Thread, String>,
}

#[derive(Debug)]
struct Thread {
    handle: Handle,
    /// The thread ends when this goes.
    _alive: tokio::sync::oneshot::Sender<()>,
}

impl Thread {
    fn start() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(32).build()?;
        let handle = runtime.handle().clone();
        let (alive, over) = tokio::sync::oneshot::channel::<()>();
        let serve = move || {
            // It is over either way.
            let _ = runtime.block_on(over);
            // A name that is being looked up keeps nobody.
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name("notify".into()).spawn(serve)?;
        Ok(Self { handle, _alive: alive })
    }
}

impl Notifier {
    /// Begins to serve the receivers of `settings`.
    #[must_use]
    pub fn start(settings: &Notify) -> Self {
        Self::start_at(Pace::default(), settings)
    }

    fn start_at(pace: Pace, settings: &Notify) -> Self {
        let thread = Thread::start().map_err(|error| {
            tracing::error!("nobody can be told anything: {error}");
            error.to_string()
        });
        let notifier = Self { pace, receivers: Mutex::default(), thread };
        notifier.use_settings(settings);
        notifier
    }

    /// Serves these receivers from now on. Those that were there before keep what waits for them.
    pub fn use_settings(&self, settings: &Notify) {
        let Ok(thread) = &self.thread else { return };
        let mut receivers = self.receivers();
        let mut before = std::mem::take(&mut *receivers);
        for to in To::all(settings) {
            let known = before.iter().position(|receiver| receiver.to == to);
            receivers.push(match known {
                Some(at) => before.swap_remove(at),
                None => {
                    let queue = Queue::new(self.pace.waiting);
                    let serving = serve(to.clone(), queue.clone(), self.pace);
                    Receiver { to, queue, task: thread.handle.spawn(serving).abort_handle() }
                }
            });
        }
        for receiver in before {
            receiver.task.abort();
        }
    }

    /// Tells an event to whoever wants it. Returns at once.
    pub fn tell(&self, event: &Event) {
        let mut shortened = None;
        for receiver in self.receivers().iter().filter(|receiver| receiver.to.wants(event)) {
            let event = shortened.get_or_insert_with(|| Arc::new(queue::shortened(event)));
            receiver.queue.push(Arc::clone(event));
        }
    }

    /// What is wrong with receivers, for a person; the same text as long as the same is wrong.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        let nobody = self.thread.as_ref().err().map(|error| format!("nobody can be told anything: {error}"));
        let troubles: Vec<String> = self
            .receivers()
            .iter()
            .filter_map(|receiver| {
                let trouble = receiver.queue.trouble(TOLD_AFTER)?;
                let lost = if trouble.lost { "; what it was to be told is being lost" } else { "" };
                Some(format!("{} fails since {}: {}{lost}", receiver.to.shown(), trouble.since, trouble.why))
            })
            .collect();
        nobody.into_iter().chain(troubles).collect()
    }

    /// Waits until everything was taken, at most for `within`; letters are gathered no longer. Returns how many events remain.
    pub fn finish(&self, within: Duration) -> usize {
        let until = std::time::Instant::now() + within;
        loop {
            let waiting: usize = self.receivers().iter().map(|receiver| receiver.queue.hurry()).sum();
            if waiting == 0 || std::time::Instant::now() >= until {
                return waiting;
            }
            std::thread::sleep(Duration::from_millis(20).min(within));
        }
    }

    fn receivers(&self) -> std::sync::MutexGuard<'_, Vec<Receiver>> {
        self.receivers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves one receiver, for ever.
async fn serve(to: To, queue: Queue, pace: Pace) {
    let (most, gather) = to.gathers(&pace);
    let mut client = http::Client::new(pace.attempt);
    loop {
        let batch = queue.next(most, gather).await;
        let begun = Instant::now();
        let (mut pause, mut refused) = (pace.first_pause, 0);
        loop {
            // Whatever an attempt is at, it has its time and no more.
            let attempt = timeout(pace.attempt.saturating_mul(2), to.attempt(&mut client, &batch)).await;
            let attempt = attempt.unwrap_or_else(|_| Attempt::later("it did not answer in time"));
            let (why, after) = match attempt {
                Attempt::Taken => {
                    queue.taken();
                    break;
                }
                Attempt::Later { why, after } => (why, after),
                Attempt::Refused { why } => {
                    refused += 1;
                    (why, None)
                }
            };
            queue.failed(&why);
            let over = refused >= pace.refusals || begun.elapsed() >= pace.give_up;
            if over {
                tracing::warn!("{} is not told {} events: {why}", to.shown(), batch.events.len());
                queue.given_up();
                break;
            }
            sleep(after.map_or(pause, |after| after.clamp(pause, pace.longest_pause))).await;
            pause = pause.saturating_mul(2).min(pace.longest_pause);
        }
    }
}
