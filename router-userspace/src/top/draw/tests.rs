//! The screen on a recorded fleet.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::Value;

use super::super::pages::GatewayPages;
use super::super::report::TopReport;
use super::super::screen::{KeyOutcome, Screen};

const FLEET: &str = include_str!("../golden/fleet.json");
const REQUESTS: &str = include_str!("../golden/requests.json");
const REQUEST: &str = include_str!("../golden/request.json");

fn recorded() -> Screen {
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let answered = GatewayPages {
        address: "10.0.0.7:9901".to_owned(),
        fleet: Ok(json(FLEET)),
        requests: Some(json(REQUESTS)),
        failures: None,
    };
    let silent = GatewayPages {
        address: "10.0.0.8:9901".to_owned(),
        fleet: Err("--gateway 10.0.0.8:9901: /fleet: connection refused".to_owned()),
        requests: None,
        failures: None,
    };
    let mut screen = Screen::default();
    screen.update(Ok(TopReport::of(&[answered, silent])));
    screen
}

fn press(screen: &mut Screen, keys: &[KeyCode]) -> KeyOutcome {
    let mut last = KeyOutcome::None;
    for key in keys {
        last = screen.key(KeyEvent::new(*key, KeyModifiers::NONE));
    }
    last
}

fn typed(text: &str) -> Vec<KeyCode> {
    text.chars().map(KeyCode::Char).collect()
}

/// The lines of the screen, without the spaces at their ends.
fn shown(screen: &Screen) -> String {
    let mut terminal = Terminal::new(TestBackend::new(120, 24)).unwrap();
    terminal.draw(|frame| super::screen(frame, screen)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y: u16| (0..120).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..24).map(|y| line(y).trim_end().to_owned() + "\n").collect()
}

/// Compares a screen with the recorded one; `UPDATE_GOLDEN=1` writes it.
fn assert_golden(name: &str, screen: &Screen) {
    let path = format!("{}/src/top/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let shown = shown(screen);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &shown).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(shown, want, "{name}\n{shown}");
}

#[test]
fn every_list_is_drawn_as_recorded() {
    let mut screen = recorded();
    for (key, name) in
        [('1', "workers"), ('2', "requests"), ('3', "parts"), ('4', "problems"), ('5', "gateways")]
    {
        press(&mut screen, &[KeyCode::Char(key)]);
        assert_golden(name, &screen);
    }
    press(&mut screen, &[KeyCode::Char('?')]);
    assert_golden("help", &screen);
}

#[test]
fn the_worker_in_trouble_is_first_with_since_when_and_why() {
    let screen = recorded();
    let text = shown(&screen);
    let first = text.lines().nth(4).unwrap();
    assert!(first.starts_with("default/prefill-1") && first.contains(" down "), "{text}");
    assert!(text.contains("gateways 1 of 2 answered"), "{text}");
}

#[test]
fn keys_sort_filter_pause_and_open() {
    let mut screen = recorded();
    press(&mut screen, &[KeyCode::Char('s'), KeyCode::Char('r')]);
    let names: Vec<&str> = screen.workers().iter().map(|(_, one)| &*one.name).collect();
    assert!(names.is_sorted_by(|a, b| a >= b), "{names:?}");
    press(&mut screen, &[KeyCode::Char('/')]);
    press(&mut screen, &typed("decode-2"));
    assert!(shown(&screen).contains("filter: decode-2_"));
    press(&mut screen, &[KeyCode::Enter]);
    assert_eq!(screen.workers().len(), 1);
    press(&mut screen, &[KeyCode::Enter]);
    let one = shown(&screen);
    assert!(one.contains("default/decode-2  decode  of default/"), "{one}");
    press(&mut screen, &[KeyCode::Esc, KeyCode::Esc]);
    assert!(screen.detail.is_none() && screen.filter.is_empty());
    press(&mut screen, &[KeyCode::Char('p')]);
    assert!(screen.is_paused() && shown(&screen).contains("PAUSED"));
    assert_eq!(press(&mut screen, &[KeyCode::Char('q')]), KeyOutcome::Quit);
}

#[test]
fn a_request_is_asked_of_its_gateway_and_drawn_as_recorded() {
    let mut screen = recorded();
    let opened = press(&mut screen, &[KeyCode::Tab, KeyCode::Enter]);
    let KeyOutcome::Open { gateway, id } = opened else { panic!("{opened:?}") };
    assert_eq!(gateway, "10.0.0.7:9901");
    assert_eq!(id, screen.requests()[0].id);
    screen.opened(Ok(serde_json::from_str(REQUEST).unwrap()));
    assert_golden("request", &screen);
}

#[test]
fn an_error_keeps_what_was_known_and_says_that_it_is_old() {
    let mut screen = recorded();
    screen.update(Err(anyhow::anyhow!("connection refused")));
    let text = shown(&screen);
    assert!(text.contains("what is shown is old: connection refused"), "{text}");
    assert!(text.contains("default/decode-2"), "{text}");
}

#[test]
fn a_client_cannot_write_to_the_terminal() {
    let mut screen = recorded();
    press(&mut screen, &[KeyCode::Char('2')]);
    let report = screen.report.as_mut().unwrap();
    report.requests[0].id = "\u{1b}[2Jid\u{9b}1m".to_owned();
    let text = shown(&screen);
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
}

#[test]
fn a_small_terminal_is_no_panic() {
    for (width, height) in [(1, 1), (20, 4), (300, 100)] {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        for key in ['1', '2', '3', '4', '5', '?'] {
            let mut screen = recorded();
            press(&mut screen, &[KeyCode::Char(key)]);
            terminal.draw(|frame| super::screen(frame, &screen)).unwrap();
        }
    }
}
