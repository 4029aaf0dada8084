//! The screen, drawn with ratatui. What is unknown is a dash, and no colour is the only sign of anything.

mod detail;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Clear, Paragraph, Row, Table, TableState, Wrap};

use super::report::{DurationStats, RequestReport, WorkerReport};
use super::screen::{Detail, Pane, Screen};
use super::text::{gateway_line, health, lasting, milliseconds, or_dash, summary, window};

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const BAD: Style = Style::new().fg(Color::Red);
const SELECTED: Style = Style::new().add_modifier(Modifier::REVERSED);
const KEYS: &str =
    "q leave  ? help  Tab next list  Enter one of them  s order  r reverse  / filter  p pause";
const HELP: &str = "
 1 to 5, Tab      the list: workers, requests, time to first token, problems, gateways
 Up, Down, j, k   the row above, below; PageUp, PageDown, g for the first
 Enter            one worker, or where the time of one request went and why its pair was chosen
 Esc              back; without anything to go back from, no filter
 s, r             the next order of the list, and its reverse
 /                show the rows that have a text in them; Enter keeps it, Esc removes it
 p, Space         pause: the numbers stay, and the gateways are not asked
 ?                this help
 q, Ctrl-C        leave";

/// Draws the whole screen.
pub(super) fn screen(frame: &mut Frame<'_>, screen: &Screen) {
    let rows = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Length(1),
    ]);
    let [head, tabs, body, keys] = rows.areas(frame.area());
    frame.render_widget(Paragraph::new(header(screen)), head);
    frame.render_widget(Paragraph::new(titles(screen)), tabs);
    match (&screen.detail, screen.shows_help) {
        (_, true) => frame.render_widget(Paragraph::new(HELP), body),
        (Some(Detail::Worker(pool, name)), _) => detail::worker(frame, body, screen, pool, name),
        (Some(Detail::Request(request)), _) => detail::request(frame, body, request),
        (None, _) => list(frame, body, screen),
    }
    frame.render_widget(Clear, keys);
    frame.render_widget(Paragraph::new(Line::styled(footer(screen), DIM)), keys);
}

fn header(screen: &Screen) -> Vec<Line<'static>> {
    let Some(report) = &screen.report else {
        let waiting = "asking the gateways".to_owned();
        return vec![Line::raw(screen.error.clone().unwrap_or(waiting))];
    };
    let mut first = vec![Span::styled("pd-router  ", BOLD), Span::raw(summary(report))];
    if screen.is_paused() {
        first.push(Span::styled("   PAUSED", BOLD));
    }
    let second = match &screen.error {
        Some(error) => Line::styled(format!("what is shown is old: {error}"), BAD),
        None => Line::raw(window(report.window.as_ref(), report.kept.is_some())),
    };
    vec![Line::from(first), second]
}

fn titles(screen: &Screen) -> Line<'static> {
    let title = |(at, pane): (usize, Pane)| {
        let style = if pane == screen.pane { SELECTED } else { DIM };
        [Span::styled(format!(" {} {} ", at + 1, pane.title()), style), Span::raw(" ")]
    };
    Line::from_iter(Pane::ALL.into_iter().enumerate().flat_map(title))
}

fn footer(screen: &Screen) -> String {
    if screen.is_typing {
        return format!("filter: {}_   Enter keeps it, Esc removes it", screen.filter);
    }
    let mut state = format!("order: {}", screen.pane.orders()[screen.order]);
    if screen.is_reversed {
        state.push_str(", reversed");
    }
    if !screen.filter.is_empty() {
        state.push_str(&format!("  filter: {}", screen.filter));
    }
    format!("{state}  |  {KEYS}")
}

fn list(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    match screen.pane {
        Pane::Workers => workers(frame, area, screen),
        Pane::Requests => requests(frame, area, screen),
        Pane::Parts => parts(frame, area, screen),
        Pane::Problems => {
            let problems = screen.problems().into_iter();
            let mut shown: Vec<Line<'static>> =
                problems.skip(screen.selected).map(|text| Line::raw(text.to_owned())).collect();
            if shown.is_empty() {
                shown.push(Line::styled("nothing", DIM));
            }
            lines(frame, area, shown);
        }
        Pane::Gateways => {
            let gateways = screen.report.iter().flat_map(|report| &report.gateways);
            let row = |gateway| Row::new([gateway_line(gateway)]);
            let rows = gateways.map(row).collect();
            table(frame, area, screen, &["GATEWAY"], [Constraint::Fill(1)], rows);
        }
    }
}

/// A list with its selected row in view.
fn table<const N: usize>(
    frame: &mut Frame<'_>,
    area: Rect,
    screen: &Screen,
    titles: &[&'static str; N],
    widths: [Constraint; N],
    rows: Vec<Row<'static>>,
) {
    if rows.is_empty() {
        return frame.render_widget(Paragraph::new(Line::styled("nothing", DIM)), area);
    }
    let selected = screen.selected.min(rows.len() - 1);
    let table = Table::new(rows, widths)
        .header(Row::new(*titles).style(DIM))
        .column_spacing(2)
        .row_highlight_style(SELECTED);
    let mut state = TableState::default().with_selected(Some(selected));
    frame.render_stateful_widget(table, area, &mut state);
}

fn workers(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    let workers = screen.workers();
    let longest = workers.iter().map(|(_, one)| one.name.chars().count()).max().unwrap_or(0);
    let name = u16::try_from(longest.clamp(6, 48)).unwrap_or(48);
    let titles =
        ["WORKER", "ROLE", "HEALTH", "FOR", "REQUESTS", "OTHERS", "SCORE", "AGE", "REASON"];
    let widths = [
        Constraint::Length(name),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(6),
        Constraint::Length(8),
        Constraint::Length(6),
        Constraint::Length(5),
        Constraint::Length(7),
        Constraint::Fill(1),
    ];
    let rows = workers.into_iter().map(|(_, one)| worker_row(one)).collect();
    table(frame, area, screen, &titles, widths, rows);
}

fn worker_row(one: &WorkerReport) -> Row<'static> {
    let (is_up, is_ready) = (one.health == "up", one.phase == "ready");
    let health = if is_ready || !is_up { health(one) } else { one.phase.clone() };
    let style = if is_up && is_ready { Style::new() } else { BAD.add_modifier(Modifier::BOLD) };
    let mut reason = one.health_reason.clone().unwrap_or_else(|| "-".to_owned());
    if !is_up && one.up_at > 0 {
        reason = format!("up at {} of {} gateways; {reason}", one.up_at, one.known_at);
    }
    let number = |text: String| Cell::from(Line::from(text).right_aligned());
    Row::new([
        Cell::from(one.name.clone()),
        Cell::from(one.role.clone()),
        Cell::from(if one.up_at > 0 && !is_up { one.health.clone() } else { health }).style(style),
        number(or_dash(one.health_for_ms, lasting)),
        number(one.requests.to_string()),
        number(or_dash(one.others_requests, |count| format!("{count:.0}"))),
        number(or_dash(one.score, |score| format!("{score:.2}"))),
        number(or_dash(one.load_age_ms, |ms| format!("{ms:.0} ms"))),
        Cell::from(reason),
    ])
}

fn requests(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    let titles = ["WAITED", "RESULT", "REQUEST", "PREFILL", "WORKER"];
    let widths = [
        Constraint::Length(11),
        Constraint::Length(22),
        Constraint::Fill(2),
        Constraint::Fill(1),
        Constraint::Fill(1),
    ];
    let row = |one: &RequestReport| {
        let style = if one.is_failed() { BAD } else { Style::new() };
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
        Row::new([
            Cell::from(Line::from(milliseconds(Some(one.waited_ms))).right_aligned()),
            Cell::from(one.reason.clone()).style(style),
            Cell::from(one.id.clone()),
            Cell::from(name(&one.prefill)),
            Cell::from(name(&one.worker)),
        ])
    };
    let rows = screen.requests().into_iter().map(row).collect();
    table(frame, area, screen, &titles, widths, rows);
}

fn parts(frame: &mut Frame<'_>, area: Rect, screen: &Screen) {
    let titles = ["POOL", "PART", "REQUESTS", "MEAN", "P50", "P99"];
    let number = Constraint::Length(11);
    let widths = [Constraint::Fill(1), Constraint::Length(10), number, number, number, number];
    let row = |pool: &str, part: &str, stats: &DurationStats| {
        let right = |text: String| Cell::from(Line::from(text).right_aligned());
        Row::new([
            Cell::from(pool.to_owned()),
            Cell::from(part.to_owned()),
            right(stats.known.to_string()),
            right(milliseconds(stats.mean_ms)),
            right(milliseconds(stats.p50_ms)),
            right(milliseconds(stats.p99_ms)),
        ])
    };
    let pools = screen.report.iter().flat_map(|report| &report.pools);
    let rows = pools.filter(|pool| screen.admits(&[&pool.name])).flat_map(|pool| {
        let of_parts = pool.parts.iter().map(|part| row(&pool.name, part.part, &part.stats));
        of_parts.chain([row(&pool.name, "ttft", &pool.ttft).style(BOLD)]).collect::<Vec<_>>()
    });
    table(frame, area, screen, &titles, widths, rows.collect());
}

/// Lines of text, cut at the area's end.
fn lines(frame: &mut Frame<'_>, area: Rect, lines: Vec<Line<'static>>) {
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), area);
}

#[cfg(test)]
mod tests;
