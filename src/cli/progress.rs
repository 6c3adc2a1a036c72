//! Shows an apply while it runs: counts on a terminal, a line every ten seconds elsewhere, events as
//! JSON lines when asked.

use std::sync::Arc;
use std::time::Duration;

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

/// What turns before the bar: what every locale's terminal can show.
const HANDS: [char; 4] = ['|', '/', '-', '\\'];

/// Columns of the terminal that the bar leaves free, its spinner included.
const SPARE: usize = 6;

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
        // Where builds run there may be a terminal and nobody who looks at it: its log keeps every redrawing.
        let is_build = context.world.environment.get("CI").is_some_and(|ci| ci != "false");
        let is_dumb = context.world.environment.get("TERM").is_none_or(|term| term == "dumb");
        let is_looked_at = context.world.stderr_is_terminal && !is_build && !is_dumb;
        let has_bar = is_looked_at && !context.printer.quiet && !json;
        let screen = Screen {
            printer: context.printer.clone(),
            clock: context.world.clock.clone(),
            json,
            has_bar,
            turn: 0,
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

struct Screen {
    printer: Printer,
    clock: Clock,
    json: bool,
    has_bar: bool,
    /// How often the bar was drawn.
    turn: usize,
    progress: Progress,
}

impl Screen {
    async fn run(mut self, mut events: UnboundedReceiver<ApplyEvent>) {
        let watch = Stopwatch::start();
        let mut tick = interval(if self.has_bar { REDRAW } else { HEARTBEAT });
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
        self.printer.clear_bar();
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
                    self.printer.note(&line);
                }
            }
        }
    }

    fn tick(&mut self, elapsed: Duration) {
        let text = self.progress.text(elapsed);
        if self.has_bar {
            self.turn += 1;
            let hand = HANDS[self.turn % HANDS.len()];
            // With room for the ^C that a terminal shows: beyond its edge it would begin another line.
            let room = self.printer.error_look.width.saturating_sub(SPARE);
            let text: String = text.chars().take(room).collect();
            self.printer.show_bar(&format!("{hand} {text}"));
        } else if !self.json {
            self.printer.note(&text);
        }
    }
}
