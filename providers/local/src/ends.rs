//! Tells when processes end: one thread waits for all of them, as the kernel tells.
//!
//! A pidfd becomes readable when its process ends, whoever its parent is (pidfd_open(2)). The thread
//! ends with the last user of it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::oneshot;

use crate::find::ProcessId;

/// How often the thread looks whether anybody still needs it.
const LOOK: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Waits for the ends of processes; clones share the thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ends(Arc<Mutex<Option<Arc<Waiting>>>>);

#[derive(Debug)]
struct Waiting {
    epoll: OwnedFd,
    processes: Mutex<Processes>,
}

#[derive(Debug, Default)]
struct Processes {
    next: u64,
    by_number: HashMap<u64, (OwnedFd, oneshot::Sender<()>)>,
}

/// Stops waiting when it is dropped.
struct Registered {
    waiting: Arc<Waiting>,
    number: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        // A closed descriptor leaves the epoll set by itself (epoll(7)).
        drop(self.waiting.processes().by_number.remove(&self.number));
    }
}

impl Waiting {
    fn processes(&self) -> MutexGuard<'_, Processes> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ends {
    /// Returns once the process has ended; `None` when the kernel cannot be asked to tell.
    pub(crate) async fn wait(&self, process: ProcessId) -> Option<()> {
        let handle = pidfd_open(Pid::from_raw(process.pid)?, PidfdFlags::empty()).ok()?;
        // The pid may have changed hands between the look at the process and the handle.
        if !process.is_alive() {
            return Some(());
        }
        let waiting = self.waiting()?;
        let (told, ended) = oneshot::channel();
        let _registered = {
            let mut processes = waiting.processes();
            let number = processes.next;
            processes.next += 1;
            epoll::add(&waiting.epoll, &handle, EventData::new_u64(number), EventFlags::IN).ok()?;
            processes.by_number.insert(number, (handle, told));
            Registered { waiting: Arc::clone(&waiting), number }
        };
        ended.await.ok()
    }

    fn waiting(&self) -> Option<Arc<Waiting>> {
        let mut begun = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.is_none() {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).ok()?;
            let waiting = Arc::new(Waiting { epoll, processes: Mutex::default() });
            let watched = Arc::downgrade(&waiting);
            thread::Builder::new().name("process-ends".into()).spawn(move || run(&watched)).ok()?;
            *begun = Some(waiting);
        }
        begun.clone()
    }
}

fn run(watched: &Weak<Waiting>) {
    let mut events = Vec::with_capacity(64);
    while let Some(waiting) = watched.upgrade() {
        events.clear();
        let buffer = rustix::buffer::spare_capacity(&mut events);
        let told = epoll::wait(&waiting.epoll, buffer, Some(&LOOK));
        if told.is_err_and(|error| error != rustix::io::Errno::INTR) {
            // Nobody is told any more: probes find out.
            return;
        }
        for event in &events {
            let event: &epoll::Event = event;
            if let Some((_, told)) = waiting.processes().by_number.remove(&event.data.u64()) {
                let _nobody_waits = told.send(()).is_err();
            }
        }
    }
}
