//! Golden cases: a client's body and the bodies for each engine; the engines' answers and the
//! answer for the client.
//!
//! A case is a file `NAME.txt` of sections, each headed by a line `--- kind argument`:
//!
//! - `endpoint`: the path;
//! - `client`: the body (the newline before the next section is not part of it);
//! - `prefill K`, `decode K`: the bodies of sample K's attempt; `single`: the body for one engine;
//! - `prefill-answer K`, `answer K`: what the legs of sample K answered (the first only where
//!   logprobs are merged); `merged`: what the client gets;
//! - `event K`: the next event of sample K's stream; `events`: what the client gets.
//!
//! Rooms are 1000, 1001, ... and request ids `K00`, `K01`, ... in hex. `BLESS=1 cargo test`
//! overwrites the expected sections with the actual ones.

use std::fmt::Write;
use std::path::Path;

use bytes::Bytes;

use super::logprob::PromptLogprobs;
use super::{Attempt, BootstrapAddress, Endpoint, Request, Rid, Room, merge};
use crate::pair::Pair;

/// A section's kind, argument and text.
type Section = (String, String, String);

fn read(text: &str) -> Vec<Section> {
    let text = format!("\n{text}");
    let mut sections = Vec::new();
    for section in text.split("\n--- ").skip(1) {
        let (head, body) = section.split_once('\n').unwrap_or((section, ""));
        let (kind, argument) = head.split_once(' ').unwrap_or((head, ""));
        let body = body.strip_suffix('\n').unwrap_or(body);
        sections.push((kind.to_owned(), argument.to_owned(), body.to_owned()));
    }
    sections
}

fn write(sections: &[Section]) -> String {
    sections.iter().fold(String::new(), |mut out, (kind, argument, body)| {
        let head = format!("--- {kind} {argument}");
        writeln!(out, "{}\n{body}", head.trim_end()).unwrap();
        out
    })
}

/// A running case.
struct Case {
    request: Request,
    answers: Vec<Bytes>,
    prompts: Vec<Option<PromptLogprobs>>,
    stream: Option<merge::StreamMerger>,
    events: String,
}

impl Case {
    fn new(sections: &[Section]) -> Case {
        let find = |kind| &sections.iter().find(|section| section.0 == kind).unwrap().2;
        let endpoint = Endpoint::from_path(find("endpoint")).unwrap();
        let request = Request::parse(endpoint, Bytes::from(find("client").clone())).unwrap();
        let samples = request.samples();
        Case {
            answers: vec![Bytes::new(); samples as usize],
            prompts: vec![None; samples as usize],
            stream: Some(merge::StreamMerger::new(endpoint, samples)),
            events: String::new(),
            request,
        }
    }

    fn rids(&self, sample: usize) -> Vec<Rid> {
        (0..self.request.rooms())
            .map(|i| Rid::from_random((sample as u128) << 8 | i as u128))
            .collect()
    }

    fn bodies(&self, sample: usize) -> Pair<Bytes> {
        let rooms: Vec<Room> =
            (0..self.request.rooms() as u64).map(|i| Room::from_random(1000 + i)).collect();
        let legs = self.request.inject(&Attempt {
            bootstrap: &BootstrapAddress::new("10.0.0.7".parse().unwrap(), 34000),
            rooms: &rooms,
            rids: &self.rids(sample),
            dp: Pair::default(),
        });
        legs.map(|body| body.to_bytes())
    }

    fn event(&mut self, sample: usize, event: &str) {
        let mut event = Bytes::from(format!("{event}\n\n"));
        if let Some(prompt) = &mut self.prompts[sample] {
            event = prompt.merge_event(event);
        }
        let out = self.stream.as_mut().unwrap().push(sample, &event).unwrap();
        self.events.push_str(&text(&out.unwrap_or_default()));
    }

    /// The expected text of a section. `None` for an input.
    fn expected(&mut self, kind: &str, argument: &str, body: &str) -> Option<String> {
        let sample = argument.parse().unwrap_or(0);
        match kind {
            "prefill" => Some(text(&self.bodies(sample).prefill)),
            "decode" => Some(text(&self.bodies(sample).decode)),
            "single" => Some(text(&self.request.plain(&self.rids(0)).to_bytes())),
            "prefill-answer" => {
                let answer = Bytes::from(body.to_owned());
                self.prompts[sample] =
                    Some(PromptLogprobs::from_prefill(self.request.endpoint(), &answer).unwrap());
                None
            }
            "answer" => {
                self.answers[sample] = match &self.prompts[sample] {
                    Some(prompt) => prompt.merge_json(body.as_bytes()).unwrap(),
                    None => Bytes::from(body.to_owned()),
                };
                None
            }
            "merged" => {
                let (endpoint, samples) = (self.request.endpoint(), self.request.samples());
                let merged = merge::json(endpoint, samples, self.request.batch(), &self.answers);
                Some(text(&merged.unwrap()))
            }
            "event" => {
                self.event(sample, body);
                None
            }
            "events" => {
                let stream = self.stream.take().unwrap();
                assert!(stream.is_complete(), "a stream has no end");
                Some(self.events.clone() + &text(&stream.finish()))
            }
            "endpoint" | "client" => None,
            other => panic!("no section is called {other}"),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn bodies_and_answers_are_as_in_the_golden_cases() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sglang/golden");
    let bless = option_env!("BLESS").is_some();
    let mut cases = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "txt") {
            continue;
        }
        cases += 1;
        let given = std::fs::read_to_string(&path).unwrap();
        let mut sections = read(&given);
        let mut case = Case::new(&sections);
        for (kind, argument, body) in &mut sections {
            if let Some(expected) = case.expected(kind, argument, body) {
                *body = expected;
            }
        }
        let produced = write(&sections);
        if bless {
            std::fs::write(&path, produced).unwrap();
        } else {
            assert_eq!(produced, given, "{}", path.display());
        }
    }
    assert!(cases >= 8, "cases are missing");
}
