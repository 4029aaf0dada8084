//! The terminal: keys in, screens out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::draw;
use super::pages::AdminPages;
use super::screen::{KeyOutcome, Screen};

/// Keys that wait to be handled. Beyond it, the terminal's own buffer holds them.
const MAX_KEYS: usize = 64;
/// Interval at which the thread that reads keys looks whether the screen is still shown.
const POLL: Duration = Duration::from_millis(100);

/// Shows the gateways on the terminal until it is left, and asks them again every `every`.
///
/// # Errors
/// The terminal cannot be used.
pub(super) async fn show(source: AdminPages, every: Duration) -> Result<()> {
    // Also restores the terminal after a panic.
    let mut terminal = ratatui::try_init().context("the terminal")?;
    let stop = Arc::new(AtomicBool::new(false));
    let (sender, mut events) = mpsc::channel(MAX_KEYS);
    let reader = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || read(&sender, &stop))
    };
    let mut screen = Screen::default();
    let result = follow(&mut terminal, &mut screen, &mut events, &source, every).await;
    stop.store(true, Ordering::Relaxed);
    events.close();
    _ = reader.join();
    ratatui::try_restore().context("the terminal")?;
    result
}

async fn follow(
    terminal: &mut ratatui::DefaultTerminal,
    screen: &mut Screen,
    events: &mut mpsc::Receiver<Event>,
    source: &AdminPages,
    every: Duration,
) -> Result<()> {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| draw::screen(frame, screen)).context("the terminal")?;
        tokio::select! {
            event = events.recv() => {
                let Some(event) = event else { return Ok(()) };
                let Event::Key(key) = event else { continue };
                if key.kind == KeyEventKind::Release {
                    continue;
                }
                match screen.key(key) {
                    KeyOutcome::None => {}
                    KeyOutcome::Quit => return Ok(()),
                    KeyOutcome::Open { gateway, id } => {
                        screen.opened(source.request(&gateway, &id).await);
                    }
                }
            }
            report = refreshed(&mut ticks, source, screen.is_paused()) => screen.update(report),
        }
    }
}

/// The next report, when it is due. Never, while the screen is paused.
async fn refreshed(
    ticks: &mut tokio::time::Interval,
    source: &AdminPages,
    is_paused: bool,
) -> Result<super::report::TopReport> {
    if is_paused {
        std::future::pending::<()>().await;
    }
    ticks.tick().await;
    source.report().await
}

/// Sends what happens on the terminal, until it is no longer shown.
fn read(sender: &mpsc::Sender<Event>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match event::poll(POLL) {
            Ok(false) => {}
            Ok(true) => {
                let Ok(event) = event::read() else { return };
                if sender.blocking_send(event).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}
