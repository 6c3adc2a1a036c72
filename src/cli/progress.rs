//! Shows an apply while it runs: counts on a terminal, a line every ten seconds elsewhere, events as
//! JSON lines when asked.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::context::Context;
use super::output::Printer;
use crate::apply::{ApplyEvent, Observer};
use crate::clock::{Clock, Stopwatch};
use crate::plan::Plan;
use crate::render::{self, Progress};

/// How often a run says that it still runs, away from a terminal.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often a terminal is redrawn.
const REDRAW: Duration = Duration::from_millis(100);

/// A display that runs beside an apply.
pub(super) struct Display {
    task: JoinHandle<()>,
}

impl Display {
    /// Starts the display of one apply; the observer feeds it.
    pub(super) fn start(context: &Context, plan: &Plan, json: bool) -> (Self, Observer) {
        let (sender, receiver) = unbounded_channel();
        let observer: Observer = Arc::new(move |event| {
            // Nobody shows it any more: the run goes on all the same.
            let _display_is_gone = sender.send(event).is_err();
        });
        let bar = (context.world.stderr_is_terminal && !context.printer.quiet && !json)
            .then(progress_bar);
        let screen = Screen {
            printer: context.printer.clone(),
            clock: context.world.clock.clone(),
            json,
            bar,
            progress: Progress::of(plan),
        };
        (Self { task: tokio::spawn(screen.run(receiver)) }, observer)
    }

    /// Waits until everything that was told is shown.
    pub(super) async fn finish(self) {
        // A display that panicked must not hide what the run came to.
        let _shown = self.task.await.is_ok();
    }
}

fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{spinner} {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar
}

struct Screen {
    printer: Printer,
    clock: Clock,
    json: bool,
    bar: Option<ProgressBar>,
    progress: Progress,
}

impl Screen {
    async fn run(mut self, mut events: UnboundedReceiver<ApplyEvent>) {
        let watch = Stopwatch::start();
        let mut tick = interval(if self.bar.is_some() { REDRAW } else { HEARTBEAT });
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        tick.tick().await;
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.event(&event),
                    None => break,
                },
                _ = tick.tick() => self.tick(watch.elapsed()),
            }
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn event(&mut self, event: &ApplyEvent) {
        use crate::apply::ApplyEventKind::{
            Completed, Draining, Failed, Found, Progress, Retrying, Started,
        };
        self.progress.count(event);
        if self.json {
            self.printer.json_line(&render::event_json(event, self.clock.now()));
            return;
        }
        match event.kind {
            Started | Completed { .. } => {}
            Progress(_) | Found { .. } | Retrying { .. } | Draining { .. } | Failed { .. } => {
                if let Some(line) = render::event_text(event, self.printer.error_look) {
                    match &self.bar {
                        Some(bar) => bar.println(line),
                        None => self.printer.note(&line),
                    }
                }
            }
        }
    }

    fn tick(&self, elapsed: Duration) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(self.progress.text(elapsed));
                bar.tick();
            }
            None if self.json => {}
            None => self.printer.note(&self.progress.text(elapsed)),
        }
    }
}
