//! The law of server-sent events.

use bytes::Bytes;
use serde_json::Value;

use super::is_json;
use crate::sglang::fault::{self, EngineFault, MAX_MESSAGE};
use crate::sglang::logprob::PromptLogprobs;
use crate::sglang::merge::StreamMerger;
use crate::sglang::sse::{self, Splitter};
use crate::sglang::{Endpoint, response};

/// Number of streams that are merged into one.
const SAMPLES: u32 = 2;
/// A limit of the size of an event that inputs reach.
const SMALL: usize = 64;

/// A stream of events. The first byte chooses the endpoint, the second one the size of the pieces; up to
/// the next zero byte, if there is one, stands the answer of a prefill whose logprobs are merged.
///
/// The events are the same however the stream is cut, are all of its bytes, and have the payloads that a
/// plain reading of the standard finds. What is made of an event is one event again, and JSON.
pub fn event(bytes: &[u8]) {
    let [first, second, rest @ ..] = bytes else { return };
    let endpoint = Endpoint::ALL[usize::from(*first) % Endpoint::ALL.len()];
    let (prefill, stream) = match rest.iter().position(|byte| *byte == 0) {
        Some(at) => (&rest[..at], &rest[at + 1..]),
        None => (&rest[..0], rest),
    };
    let (events, tail) = split([stream]);
    let size = 1 + usize::from(*second) % 23;
    assert_eq!(split(stream.chunks(size)), (events.clone(), tail.clone()), "pieces of {size}");
    assert_eq!([&events.concat()[..], &tail].concat(), stream);
    payloads_are_those_of_the_standard(stream, &events);
    a_limit_counts_alike_however_the_stream_is_cut(stream, size);
    events.iter().for_each(|event| read(endpoint, event));
    merge(endpoint, &events);
    if let Ok(mut prompt) = PromptLogprobs::from_prefill(endpoint, &Bytes::copy_from_slice(prefill))
    {
        for event in &events {
            let merged = prompt.merge_event(event.clone());
            assert!(merged == *event || is_one_event(&merged), "{merged:?}");
        }
    }
}

/// The whole events of a stream in pieces, and the unfinished one.
fn split<'p>(pieces: impl IntoIterator<Item = &'p [u8]>) -> (Vec<Bytes>, Bytes) {
    let (mut splitter, mut events) = (Splitter::default(), Vec::new());
    for piece in pieces {
        splitter.push(Bytes::copy_from_slice(piece));
        while let Some(event) = splitter.next() {
            events.push(event.expect("an input is smaller than the limit"));
        }
    }
    (events, splitter.rest())
}

/// Compares with the payloads that lines give, without regard to where the bytes of an event end.
fn payloads_are_those_of_the_standard(stream: &[u8], events: &[Bytes]) {
    let text = replaced(&replaced(stream, b"\r\n", b"\n"), b"\r", b"\n");
    let (mut expected, mut current): (Vec<Vec<u8>>, Option<Vec<u8>>) = (Vec::new(), None);
    let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    // What is after the last line ending is no whole line.
    lines.pop();
    for line in lines {
        match line.strip_prefix(b"data:") {
            None if line.is_empty() => expected.extend(current.take()),
            None => {}
            Some(value) => {
                let value = value.strip_prefix(b" ").unwrap_or(value);
                match &mut current {
                    None => current = Some(value.to_vec()),
                    Some(data) => data.extend([b"\n", value].concat()),
                }
            }
        }
    }
    let found: Vec<_> = events.iter().filter_map(|event| sse::data(event)).collect();
    // The `\n` of a blank line's `\r\n` may still come, so its event is not whole.
    if stream.ends_with(b"\r") && found.len() < expected.len() {
        expected.pop();
    }
    assert_eq!(found, expected);
}

fn replaced(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = memchr::memmem::find(rest, from) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
    out
}

fn a_limit_counts_alike_however_the_stream_is_cut(stream: &[u8], size: usize) {
    let within = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut splitter, mut count) = (Splitter::new(SMALL), 0);
        for piece in pieces {
            splitter.push(Bytes::copy_from_slice(piece));
            while let Some(event) = splitter.next() {
                match event {
                    Ok(event) => assert!(event.len() <= SMALL),
                    Err(_) => return Err(count),
                }
                count += 1;
            }
        }
        Ok(count)
    };
    let whole = within(&mut std::iter::once(stream));
    assert_eq!(within(&mut stream.chunks(size)), whole, "pieces of {size}");
}

/// What is read of one event.
fn read(endpoint: Endpoint, event: &Bytes) {
    let is_done = sse::is_done(event);
    assert!(!(is_done && sse::is_comment(event)));
    let _ = (sse::name(event), sse::is_preamble(endpoint, event));
    assert!(response::event_id(event).is_none_or(|id| id.len() <= response::MAX_ID));
    let fault = fault::event_fault(endpoint, event);
    let first = fault::first_event_fault(endpoint, event);
    assert!(fault.is_none() || fault == first);
    if let Some(EngineFault { status, message }) = first {
        assert!((400..600).contains(&status), "{status}");
        assert!(!message.is_empty() && !message.contains(char::is_control), "{message:?}");
        // An address may be shorter than what stands for it.
        assert!(message.len() <= 2 * MAX_MESSAGE);
    }
}

/// Merges streams of the same events, as those of the samples of one request.
fn merge(endpoint: Endpoint, events: &[Bytes]) {
    let mut merger = StreamMerger::new(endpoint, SAMPLES);
    for event in events {
        for sample in 0..SAMPLES {
            match merger.push(sample as usize, event) {
                Err(fault) => return assert!((400..600).contains(&fault.status)),
                Ok(None) => {}
                Ok(Some(merged)) => {
                    assert!(is_one_event(&merged), "{merged:?}");
                    indexes_are_of(endpoint, sample, &merged);
                }
            }
        }
    }
    let end = merger.finish();
    let (last, tail) = split([&end[..]]);
    assert!(last.last().is_some_and(|event| sse::is_done(event)) && tail.is_empty(), "{end:?}");
    for event in &last[..last.len() - 1] {
        assert!(sse::data(event).is_some_and(|data| is_json(&data)), "{event:?}");
    }
}

/// The indexes of merged choices tell the samples apart.
fn indexes_are_of(endpoint: Endpoint, sample: u32, event: &Bytes) {
    let data = sse::data(event).expect("it has a payload");
    let Ok(chunk) = serde_json::from_slice::<Value>(&data) else { return };
    let choices = match endpoint {
        Endpoint::Generate => std::slice::from_ref(&chunk),
        _ => chunk["choices"].as_array().map_or(&[][..], Vec::as_slice),
    };
    for index in choices.iter().filter_map(|choice| choice.get("index")) {
        let index = index.as_u64().expect("the merger has written it");
        assert!(index == u64::MAX || index % u64::from(SAMPLES) == u64::from(sample), "{index}");
    }
}

fn is_one_event(event: &Bytes) -> bool {
    let (events, tail) = split([&event[..]]);
    events.len() == 1 && tail.is_empty() && sse::data(event).is_some_and(|data| is_json(&data))
}

#[cfg(test)]
mod tests {
    use super::super::inputs;

    #[test]
    fn bytes_near_events_keep_the_law() {
        inputs::try_law("event", super::event, 20_000);
    }
}
