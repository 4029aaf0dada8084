//! Merges n event streams into one.

use bytes::Bytes;

use super::super::fault::{EngineFault, event_fault};
use super::super::json::{JsonType, Patch, Raw};
use super::super::{Endpoint, sse};
use super::{decimal, extension, usage};

/// Merges the streams of `samples` single-sample requests as their events arrive.
///
/// All events get the id and the time of the first one, and the index of their sample. The n usage
/// chunks become one, and so do the n `[DONE]`. Buffers at most one usage chunk and two extension
/// chunks per sample.
///
/// ```
/// use router_core::sglang::{Endpoint, merge::StreamMerger};
///
/// let mut stream = StreamMerger::new(Endpoint::Completions, 2);
/// let a = stream.push(0, b"data: {\"id\":\"a\",\"choices\":[{\"index\":0,\"text\":\"x\"}]}\n\n");
/// assert_eq!(a.unwrap().unwrap(), "data: {\"id\":\"a\",\"choices\":[{\"index\":0,\"text\":\"x\"}]}\n\n");
/// let b = stream.push(1, b"data: {\"id\":\"b\",\"choices\":[{\"index\":0,\"text\":\"y\"}]}\n\n");
/// assert_eq!(b.unwrap().unwrap(), "data: {\"id\":\"a\",\"choices\":[{\"index\":1,\"text\":\"y\"}]}\n\n");
/// assert_eq!(stream.push(0, b"data: [DONE]\n\n"), Ok(None));
/// assert_eq!(stream.push(1, b"data: [DONE]\n\n"), Ok(None));
/// assert!(stream.is_complete());
/// assert_eq!(stream.finish(), "data: [DONE]\n\n");
/// ```
#[derive(Debug)]
pub struct StreamMerger {
    endpoint: Endpoint,
    /// Which samples have ended with `[DONE]`.
    done: Vec<bool>,
    /// The values of `id` and `created` in all events.
    id: Option<Bytes>,
    created: Option<Bytes>,
    /// The last chunks without choices, per sample: one with a usage, one without, and one that is
    /// a named event (`sglext_ids`, if the client requested the ids this way).
    usage: Vec<Option<Bytes>>,
    extension: Vec<Option<Bytes>>,
    named: Vec<Option<Bytes>>,
    /// The name of the named event.
    name: Vec<u8>,
}

impl StreamMerger {
    pub fn new(endpoint: Endpoint, samples: u32) -> StreamMerger {
        let samples = samples as usize;
        StreamMerger {
            endpoint,
            done: vec![false; samples],
            id: None,
            created: None,
            usage: vec![None; samples],
            extension: vec![None; samples],
            named: vec![None; samples],
            name: Vec::new(),
        }
    }

    /// Adds one whole event of the stream of `sample` (from 0). Returns the event for the client,
    /// if there is one now.
    ///
    /// A reported failure or a malformed event fails the whole answer. The caller then aborts the
    /// other samples.
    pub fn push(&mut self, sample: usize, event: &[u8]) -> Result<Option<Bytes>, EngineFault> {
        if let Some(fault) = event_fault(self.endpoint, event) {
            return Err(fault);
        }
        let Some(data) = sse::data(event) else { return Ok(None) };
        if data.trim_ascii() == b"[DONE]" {
            if let Some(done) = self.done.get_mut(sample) {
                *done = true;
            }
            return Ok(None);
        }
        let chunk = Raw::parse(&data).ok().filter(|raw| raw.kind() == JsonType::Object);
        let (Some(chunk), true) = (chunk, sample < self.done.len()) else {
            let message = "the engine sent a malformed event".to_owned();
            return Err(EngineFault { status: 502, message });
        };
        if self.endpoint == Endpoint::Generate {
            return Ok(Some(sse::with_data(event, &self.answer(sample, chunk)).into()));
        }
        let chunk = Chunk::read(chunk);
        if chunk.choices.is_some_and(|choices| choices.elements().next().is_none()) {
            self.buffer(sample, &chunk, sse::name(event));
            return Ok(None);
        }
        Ok(Some(sse::with_data(event, &self.choices(sample, &chunk)).into()))
    }

    /// Whether every stream has ended with `[DONE]`. A stream that ended without it was cut off.
    pub fn is_complete(&self) -> bool {
        self.done.iter().all(|done| *done)
    }

    /// The end of the merged stream: the merged buffered chunks and one `[DONE]`.
    pub fn finish(self) -> Bytes {
        let mut out = Vec::new();
        let named = [b"event: ", &self.name[..], b"\n"].concat();
        let buffered = [(&b""[..], &self.extension), (&named, &self.named), (b"", &self.usage)];
        for (head, buffered) in buffered {
            let chunks: Vec<Raw<'_>> =
                buffered.iter().flatten().map(|chunk| Raw::trusted(chunk)).collect();
            let Some(&first) = chunks.first() else { continue };
            let mut patch = Patch::new(first);
            let chunk = Chunk::read(first);
            self.set_identity(&chunk, &mut patch);
            if let Some(old) = chunk.usage {
                let usages: Vec<Raw<'_>> =
                    chunks.iter().filter_map(|chunk| chunk.get("usage")).collect();
                patch.replace(old, usage::merge(&usages));
            }
            extension(first, &chunks, &mut patch);
            out.extend_from_slice(head);
            sse::write_data(&patched(patch, first), &mut out);
        }
        out.extend_from_slice(sse::DONE);
        out.into()
    }

    /// The index in the merged answer of sequence `index` of one sample's stream.
    fn index(&self, sample: usize, index: Option<Raw<'_>>) -> Vec<u8> {
        let prompt = index.and_then(Raw::as_u64).unwrap_or(0);
        decimal(prompt.saturating_mul(self.done.len() as u64).saturating_add(sample as u64))
    }

    /// An event of `/generate`. The engine writes `index` last, and only for several sequences.
    fn answer(&self, sample: usize, chunk: Raw<'_>) -> Vec<u8> {
        let mut patch = Patch::new(chunk);
        let old = chunk.get("index");
        let index = self.index(sample, old);
        match old {
            Some(old) => patch.replace(old, index),
            None => patch.append(chunk, "index", &index),
        }
        patched(patch, chunk)
    }

    fn choices(&mut self, sample: usize, chunk: &Chunk<'_>) -> Vec<u8> {
        if self.id.is_none() {
            let copy = |raw: Raw<'_>| Bytes::copy_from_slice(raw.bytes());
            self.id = chunk.id.map(copy);
            self.created = chunk.created.map(copy);
        }
        let mut patch = Patch::new(chunk.whole);
        self.set_identity(chunk, &mut patch);
        for choice in chunk.choices.into_iter().flat_map(Raw::elements) {
            if let Some(old) = choice.get("index") {
                patch.replace(old, self.index(sample, Some(old)));
            }
        }
        patched(patch, chunk.whole)
    }

    fn set_identity<'a>(&'a self, chunk: &Chunk<'a>, patch: &mut Patch<'a>) {
        for (old, value) in [(chunk.id, &self.id), (chunk.created, &self.created)] {
            if let (Some(old), Some(value)) = (old, value) {
                patch.replace(old, &value[..]);
            }
        }
    }

    fn buffer(&mut self, sample: usize, chunk: &Chunk<'_>, name: Option<&[u8]>) {
        let buffered = match name {
            Some(name) => {
                self.name = name.to_vec();
                &mut self.named
            }
            None if chunk.usage.is_some() => &mut self.usage,
            None => &mut self.extension,
        };
        buffered[sample] = Some(Bytes::copy_from_slice(chunk.whole.bytes()));
    }
}

/// A chunk of an OpenAI stream, parsed in one pass.
struct Chunk<'a> {
    whole: Raw<'a>,
    id: Option<Raw<'a>>,
    created: Option<Raw<'a>>,
    choices: Option<Raw<'a>>,
    /// `None` if null.
    usage: Option<Raw<'a>>,
}

impl<'a> Chunk<'a> {
    fn read(whole: Raw<'a>) -> Chunk<'a> {
        let mut chunk = Chunk { whole, id: None, created: None, choices: None, usage: None };
        for member in whole.members() {
            let field = match member.key.as_str().as_deref() {
                Some("id") => &mut chunk.id,
                Some("created") => &mut chunk.created,
                Some("choices") => &mut chunk.choices,
                Some("usage") => &mut chunk.usage,
                _ => continue,
            };
            *field = Some(member.value).filter(|value| !value.is_null());
        }
        chunk
    }
}

fn patched(patch: Patch<'_>, chunk: Raw<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(chunk.bytes().len() + 48);
    patch.write(&mut out);
    out
}
