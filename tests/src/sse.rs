//! Server-sent events as a strict reader sees them, each with the time at which it was whole.

use std::time::Duration;

use serde_json::Value;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The `data:` lines, joined by newlines.
    pub data: String,
    /// From the sending of the request until the event's blank line had arrived.
    pub at: Duration,
}

impl Event {
    /// The data as JSON.
    ///
    /// # Panics
    /// It is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data)
            .unwrap_or_else(|error| panic!("an event that is no JSON ({error}): {}", self.data))
    }

    #[must_use]
    pub fn is_done(&self) -> bool {
        self.data == "[DONE]"
    }
}

/// Puts events together from pieces of a body, however it was cut.
#[derive(Debug, Default)]
pub struct Reader {
    pending: Vec<u8>,
}

impl Reader {
    /// Adds a piece and returns the events that it completes.
    ///
    /// # Panics
    /// A line that is neither `data:`, another field, a comment nor blank; data not in UTF-8.
    pub fn feed(&mut self, piece: &[u8], at: Duration) -> Vec<Event> {
        self.pending.extend_from_slice(piece);
        let mut events = Vec::new();
        while let Some(end) = self.pending.windows(2).position(|pair| pair == b"\n\n") {
            let block: Vec<u8> = self.pending.drain(..end + 2).collect();
            let text = String::from_utf8(block).expect("an event in UTF-8");
            let data: Vec<&str> = text.lines().filter_map(data_line).collect();
            if !data.is_empty() {
                events.push(Event { data: data.join("\n"), at });
            }
        }
        events
    }

    /// What has arrived of an event that is not whole.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        &self.pending
    }
}

fn data_line(line: &str) -> Option<&str> {
    if let Some(data) = line.strip_prefix("data:") {
        return Some(data.strip_prefix(' ').unwrap_or(data));
    }
    let known =
        line.is_empty() || ["event:", "id:", "retry:", ":"].iter().any(|f| line.starts_with(f));
    assert!(known, "not a line of an event stream: {line:?}");
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_however_the_bytes_are_cut() {
        let text =
            "data: {\"a\":\"é\"}\n\nevent: x\ndata: 1\ndata: 2\n\n: note\n\ndata: [DONE]\n\n";
        for size in 1..text.len() {
            let mut reader = Reader::default();
            let pieces = text.as_bytes().chunks(size);
            let events: Vec<Event> =
                pieces.flat_map(|piece| reader.feed(piece, Duration::ZERO)).collect();
            let data: Vec<&str> = events.iter().map(|event| event.data.as_str()).collect();
            assert_eq!(data, ["{\"a\":\"é\"}", "1\n2", "[DONE]"], "pieces of {size}");
            assert!(events[2].is_done() && reader.pending().is_empty());
        }
    }

    #[test]
    #[should_panic(expected = "not a line of an event stream")]
    fn a_bare_error_body_is_no_event() {
        Reader::default().feed(b"{\"error\":\"x\"}\n\n", Duration::ZERO);
    }
}
