//! The terminal: keys in, screens out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::LocalBoxFuture;
use ratatui::Terminal;
use ratatui::backend::Backend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::draw;
use super::pages::AdminPages;
use super::report::TopReport;
use super::screen::{KeyOutcome, Pane, Screen};

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

/// What is shown is read from here.
trait ReportSource {
    async fn report(&self) -> Result<TopReport>;
    async fn request(&self, address: &str, id: &str) -> Result<Value>;
}

impl ReportSource for AdminPages {
    async fn report(&self) -> Result<TopReport> {
        AdminPages::report(self).await
    }

    async fn request(&self, address: &str, id: &str) -> Result<Value> {
        AdminPages::request(self, address, id).await
    }
}

/// An answer that is awaited, while keys are handled.
type Running<'s, T> = Option<LocalBoxFuture<'s, Result<T>>>;

async fn follow<B: Backend<Error: Send + Sync + 'static>>(
    terminal: &mut Terminal<B>,
    screen: &mut Screen,
    events: &mut mpsc::Receiver<Event>,
    source: &impl ReportSource,
    every: Duration,
) -> Result<()> {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut refresh: Running<'_, TopReport> = None;
    let mut opening: Running<'_, Value> = None;
    loop {
        terminal.draw(|frame| draw::screen(frame, screen)).context("the terminal")?;
        tokio::select! {
            event = events.recv() => {
                let Some(event) = event else { return Ok(()) };
                let Event::Key(key) = event else { continue };
                if key.kind == KeyEventKind::Release {
                    continue;
                }
                let outcome = screen.key(key);
                // Who has gone elsewhere does not want the request any more.
                if screen.pane != Pane::Requests || key.code == KeyCode::Esc {
                    opening = None;
                }
                match outcome {
                    KeyOutcome::None => {}
                    KeyOutcome::Quit => return Ok(()),
                    KeyOutcome::Open { gateway, id } => {
                        let request = async move { source.request(&gateway, &id).await };
                        opening = Some(Box::pin(request));
                    }
                }
            }
            _ = ticks.tick(), if refresh.is_none() && !screen.is_paused() => {
                refresh = Some(Box::pin(source.report()));
            }
            report = finished(&mut refresh) => {
                // While the screen is paused, its numbers stay.
                if !screen.is_paused() {
                    screen.update(report);
                }
            }
            request = finished(&mut opening) => screen.opened(request),
        }
    }
}

/// The result of what runs; never, where nothing does. Of a cancelled call, it runs on.
async fn finished<T>(running: &mut Running<'_, T>) -> Result<T> {
    let Some(future) = running else { return std::future::pending().await };
    let result = future.await;
    *running = None;
    result
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

#[cfg(test)]
mod tests {
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::{KeyEvent, KeyModifiers};
    use tokio::time::{Instant, sleep};

    use super::super::report::tests::example;
    use super::*;

    const EVERY: Duration = Duration::from_secs(2);

    /// Answers after a time; never, without one.
    struct Slow(Option<Duration>);

    impl Slow {
        async fn wait(&self) {
            match self.0 {
                Some(time) => sleep(time).await,
                None => std::future::pending().await,
            }
        }
    }

    impl ReportSource for Slow {
        async fn report(&self) -> Result<TopReport> {
            self.wait().await;
            Ok(example())
        }

        async fn request(&self, _: &str, id: &str) -> Result<Value> {
            self.wait().await;
            Ok(id.into())
        }
    }

    /// The screen after these keys, each of them after 100 ms.
    async fn after(source: &Slow, screen: &mut Screen, keys: &[KeyCode]) -> Duration {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        let (sender, mut events) = mpsc::channel(MAX_KEYS);
        let started = Instant::now();
        let keys = async {
            for key in keys {
                sleep(Duration::from_millis(100)).await;
                let key = Event::Key(KeyEvent::new(*key, KeyModifiers::NONE));
                sender.send(key).await.unwrap();
            }
        };
        let followed = follow(&mut terminal, screen, &mut events, source, EVERY);
        tokio::join!(followed, keys).0.unwrap();
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn q_ends_at_once_while_gateways_do_not_answer() {
        let keys = [KeyCode::Char('2'), KeyCode::Enter, KeyCode::Char('q')];
        let mut screen = Screen::default();
        screen.update(Ok(example()));
        let took = after(&Slow(None), &mut screen, &keys).await;
        assert!(took < Duration::from_millis(400), "{took:?}");
        assert!(screen.detail.is_none() && screen.error.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn keys_do_not_prevent_an_update() {
        let mut keys = vec![KeyCode::Down; 6];
        keys.push(KeyCode::Char('q'));
        let mut screen = Screen::default();
        after(&Slow(Some(Duration::from_millis(450))), &mut screen, &keys).await;
        assert!(screen.report.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_opened_while_keys_are_pressed_unless_its_list_is_left() {
        let source = Slow(Some(Duration::from_millis(250)));
        for (key, is_opened) in
            [(KeyCode::Down, true), (KeyCode::Esc, false), (KeyCode::Char('1'), false)]
        {
            let mut keys = vec![KeyCode::Char('2'), KeyCode::Enter, key];
            keys.extend([KeyCode::Null; 5]);
            keys.push(KeyCode::Char('q'));
            let mut screen = Screen::default();
            screen.update(Ok(example()));
            after(&source, &mut screen, &keys).await;
            assert_eq!(screen.detail.is_some(), is_opened, "{key:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_that_comes_while_the_screen_is_paused_changes_nothing() {
        let mut keys = vec![KeyCode::Char('p')];
        keys.extend([KeyCode::Null; 5]);
        keys.push(KeyCode::Char('q'));
        let mut screen = Screen::default();
        after(&Slow(Some(Duration::from_millis(250))), &mut screen, &keys).await;
        assert!(screen.report.is_none());
    }
}
