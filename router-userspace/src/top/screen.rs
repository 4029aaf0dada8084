//! [`Screen`]: what is shown on the terminal, and what keys do to it.

use anyhow::Result;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::Value;

use super::report::{RequestReport, TopReport, WorkerReport, badness};

/// Maximum length of a filter, in characters.
const MAX_FILTER: usize = 60;

/// One of the lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Pane {
    #[default]
    Workers,
    Requests,
    Parts,
    Problems,
    Gateways,
}

impl Pane {
    pub(super) const ALL: [Pane; 5] =
        [Pane::Workers, Pane::Requests, Pane::Parts, Pane::Problems, Pane::Gateways];

    pub(super) fn title(self) -> &'static str {
        match self {
            Pane::Workers => "Workers",
            Pane::Requests => "Requests",
            Pane::Parts => "Time to first token",
            Pane::Problems => "Problems",
            Pane::Gateways => "Gateways",
        }
    }

    /// The orders of its list.
    pub(super) fn orders(self) -> &'static [&'static str] {
        match self {
            Pane::Workers => &["trouble", "name", "requests", "score"],
            Pane::Requests => &["failed, then slow", "latest", "pool"],
            Pane::Parts | Pane::Problems | Pane::Gateways => &["name"],
        }
    }
}

/// What else a key asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum KeyOutcome {
    None,
    Quit,
    /// Read one request of a gateway.
    Open {
        gateway: String,
        id: String,
    },
}

/// One worker or one request, shown alone.
#[derive(Debug)]
pub(super) enum Detail {
    /// The pool and the name of the worker.
    Worker(String, String),
    Request(Value),
}

/// The state of the screen.
#[derive(Debug, Default)]
pub(super) struct Screen {
    pub(super) report: Option<TopReport>,
    /// Why there is no newer report.
    pub(super) error: Option<String>,
    pub(super) pane: Pane,
    pub(super) order: usize,
    pub(super) is_reversed: bool,
    pub(super) filter: String,
    /// Keys are added to the filter.
    pub(super) is_typing: bool,
    pub(super) selected: usize,
    pub(super) detail: Option<Detail>,
    pub(super) shows_help: bool,
    is_paused: bool,
}

impl Screen {
    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    pub(super) fn update(&mut self, report: Result<TopReport>) {
        match report {
            Ok(report) => (self.report, self.error) = (Some(report), None),
            // What was known is still shown: a gateway that restarts is asked again.
            Err(error) => self.error = Some(format!("{error:#}")),
        }
    }

    /// Shows the request that was read.
    pub(super) fn opened(&mut self, request: Result<Value>) {
        match request {
            Ok(request) => self.detail = Some(Detail::Request(request)),
            Err(error) => self.error = Some(format!("{error:#}")),
        }
    }

    pub(super) fn key(&mut self, key: KeyEvent) -> KeyOutcome {
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return KeyOutcome::Quit;
        }
        if self.is_typing {
            self.type_key(key.code);
            return KeyOutcome::None;
        }
        match key.code {
            KeyCode::Char('q') => return KeyOutcome::Quit,
            KeyCode::Esc => self.leave(),
            KeyCode::Char('?' | 'h') => self.shows_help = !self.shows_help,
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char('s') => self.order = (self.order + 1) % self.pane.orders().len(),
            KeyCode::Char('r') => self.is_reversed = !self.is_reversed,
            KeyCode::Char(digit @ '1'..='5') => self.go_to(digit as usize - '1' as usize),
            KeyCode::Tab => self.go_to((self.at() + 1) % Pane::ALL.len()),
            KeyCode::BackTab => self.go_to((self.at() + Pane::ALL.len() - 1) % Pane::ALL.len()),
            KeyCode::Down | KeyCode::Char('j') => self.selected += 1,
            KeyCode::Up | KeyCode::Char('k') => self.selected = self.selected.saturating_sub(1),
            KeyCode::PageDown => self.selected += 10,
            KeyCode::PageUp => self.selected = self.selected.saturating_sub(10),
            KeyCode::Home | KeyCode::Char('g') => self.selected = 0,
            KeyCode::Enter => return self.open(),
            _ => {}
        }
        self.selected = self.selected.min(self.rows().saturating_sub(1));
        KeyOutcome::None
    }

    fn type_key(&mut self, key: KeyCode) {
        match key {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => _ = self.filter.pop(),
            KeyCode::Char(typed) if self.filter.chars().count() < MAX_FILTER => {
                self.filter.push(typed);
            }
            _ => {}
        }
        self.selected = 0;
    }

    fn leave(&mut self) {
        if self.shows_help {
            self.shows_help = false;
        } else if self.detail.take().is_none() {
            self.filter.clear();
        }
    }

    fn at(&self) -> usize {
        Pane::ALL.iter().position(|pane| *pane == self.pane).unwrap_or(0)
    }

    fn go_to(&mut self, at: usize) {
        self.pane = Pane::ALL[at];
        (self.order, self.is_reversed, self.selected, self.detail) = (0, false, 0, None);
    }

    fn open(&mut self) -> KeyOutcome {
        match self.pane {
            Pane::Workers => {
                let workers = self.workers();
                let chosen = workers.get(self.selected);
                let chosen = chosen.map(|(pool, one)| ((*pool).to_owned(), one.name.clone()));
                self.detail = chosen.map(|(pool, name)| Detail::Worker(pool, name));
            }
            Pane::Requests => {
                if let Some(chosen) = self.requests().get(self.selected) {
                    let (gateway, id) = (chosen.gateway.clone(), chosen.id.clone());
                    return KeyOutcome::Open { gateway, id };
                }
            }
            Pane::Parts | Pane::Problems | Pane::Gateways => {}
        }
        KeyOutcome::None
    }

    fn rows(&self) -> usize {
        let Some(report) = &self.report else { return 0 };
        match self.pane {
            Pane::Workers => self.workers().len(),
            Pane::Requests => self.requests().len(),
            Pane::Parts => report.pools.iter().map(|pool| pool.parts.len() + 1).sum(),
            Pane::Problems => self.problems().len(),
            Pane::Gateways => report.gateways.len(),
        }
    }

    /// Whether one of the texts has the filter in it.
    pub(super) fn admits(&self, texts: &[&str]) -> bool {
        let wanted = self.filter.to_lowercase();
        wanted.is_empty() || texts.iter().any(|text| text.to_lowercase().contains(&wanted))
    }

    /// The workers that the filter admits, each with its pool, in order.
    pub(super) fn workers(&self) -> Vec<(&str, &WorkerReport)> {
        let pools = self.report.iter().flat_map(|report| &report.pools);
        let all = pools.flat_map(|pool| pool.workers.iter().map(|one| (pool.name.as_str(), one)));
        let mut found: Vec<(&str, &WorkerReport)> = all
            .filter(|(pool, one)| {
                let reason = one.health_reason.as_deref().unwrap_or_default();
                self.admits(&[pool, &one.name, &one.role, &one.health, reason])
            })
            .collect();
        let trouble = |one: &WorkerReport| (badness(&one.health), one.phase != "ready");
        match self.pane.orders().get(self.order).copied() {
            Some("name") => found.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name)),
            Some("requests") => found.sort_by_key(|(_, one)| std::cmp::Reverse(one.requests)),
            Some("score") => found.sort_by(|(_, a), (_, b)| {
                b.score.unwrap_or(-1.0).total_cmp(&a.score.unwrap_or(-1.0))
            }),
            _ => found.sort_by_key(|(_, one)| std::cmp::Reverse(trouble(one))),
        }
        if self.is_reversed {
            found.reverse();
        }
        found
    }

    /// The requests that the filter admits, in order.
    pub(super) fn requests(&self) -> Vec<&RequestReport> {
        let all = self.report.iter().flat_map(|report| &report.requests);
        let name = |name: &'_ Option<String>| name.clone().unwrap_or_default();
        let mut found: Vec<&RequestReport> = all
            .filter(|one| {
                let (prefill, worker) = (name(&one.prefill), name(&one.worker));
                self.admits(&[&one.id, &one.pool, &one.reason, &one.detail, &prefill, &worker])
            })
            .collect();
        match self.pane.orders().get(self.order).copied() {
            Some("latest") => found.sort_by(|a, b| b.ended_ms.total_cmp(&a.ended_ms)),
            Some("pool") => found.sort_by(|a, b| a.pool.cmp(&b.pool)),
            // As the report has them.
            _ => {}
        }
        if self.is_reversed {
            found.reverse();
        }
        found
    }

    pub(super) fn problems(&self) -> Vec<&str> {
        let all = self.report.iter().flat_map(|report| &report.problems);
        all.map(String::as_str).filter(|problem| self.admits(&[problem])).collect()
    }
}
