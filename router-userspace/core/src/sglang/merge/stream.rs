//! n event streams in, one out.

use bytes::Bytes;

use super::super::fault::{EngineFault, event_fault};
use super::super::json::{JsonType, Patch, Raw};
use super::super::{Endpoint, sse};
use super::{decimal, extension, usage};

/// Merges the streams of `samples` single-sample requests as their events arrive.
///
/// All events get the id and the time of the first one and the index of their sample; the n
/// usage chunks become one, the n `[DONE]` too. Holds, at most, a usage chunk and an extension
/// chunk of each sample.
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
    /// Which samples have said `[DONE]`.
    done: Vec<bool>,
    /// The values of `id` and `created` that all events carry.
    id: Option<Bytes>,
    created: Option<Bytes>,
    /// Of each sample, the last chunk without choices that has a usage, one that has none, and
    /// one that came as a named event (`sglext_ids`, where the client asked for the ids so).
    usage: Vec<Option<Bytes>>,
    extension: Vec<Option<Bytes>>,
    named: Vec<Option<Bytes>>,
    /// The name of the latter.
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

    /// Takes one whole event of the stream of `sample` (from 0) and gives what the client gets
    /// now, if anything.
    ///
    /// A failure that the event reports, or an event that is none, is the failure of the whole
    /// answer: the caller aborts the other samples.
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
            let message = "the engine sent an event that is not of its protocol".to_owned();
            return Err(EngineFault { status: 502, message });
        };
        if self.endpoint == Endpoint::Generate {
            return Ok(Some(sse::with_data(event, &self.answer(sample, chunk)).into()));
        }
        let chunk = Chunk::read(chunk);
        if chunk.choices.is_some_and(|choices| choices.elements().next().is_none()) {
            self.keep(sample, &chunk, sse::name(event));
            return Ok(None);
        }
        Ok(Some(sse::with_data(event, &self.choices(sample, &chunk)).into()))
    }

    /// Whether every stream has ended with `[DONE]`; one that ended without was cut.
    pub fn is_complete(&self) -> bool {
        self.done.iter().all(|done| *done)
    }

    /// The end of the merged stream: what was held, merged, and one `[DONE]`.
    pub fn finish(self) -> Bytes {
        let mut out = Vec::new();
        let named = [b"event: ", &self.name[..], b"\n"].concat();
        let held = [(&b""[..], &self.extension), (&named, &self.named), (b"", &self.usage)];
        for (head, held) in held {
            let chunks: Vec<Raw<'_>> =
                held.iter().flatten().map(|chunk| Raw::trusted(chunk)).collect();
            let Some(&first) = chunks.first() else { continue };
            let mut patch = Patch::new(first);
            let chunk = Chunk::read(first);
            self.rename(&chunk, &mut patch);
            if let Some(old) = chunk.usage {
                let usages: Vec<Raw<'_>> =
                    chunks.iter().filter_map(|chunk| chunk.get("usage")).collect();
                patch.replace(old, usage::merge(&usages));
            }
            extension(first, &chunks, &mut patch);
            out.extend_from_slice(head);
            out.extend_from_slice(b"data: ");
            patch.write(&mut out);
            out.extend_from_slice(b"\n\n");
        }
        out.extend_from_slice(sse::DONE);
        out.into()
    }

    /// The index of sequence `index` of one sample's stream among those of all samples.
    fn index(&self, sample: usize, index: Option<Raw<'_>>) -> Vec<u8> {
        let prompt = index.and_then(Raw::as_u64).unwrap_or(0);
        decimal(prompt.saturating_mul(self.done.len() as u64).saturating_add(sample as u64))
    }

    /// An event of `/generate`, whose engine writes `index` last, and only for several sequences.
    fn answer(&self, sample: usize, chunk: Raw<'_>) -> Vec<u8> {
        let mut patch = Patch::new(chunk);
        let old = chunk.get("index");
        let index = self.index(sample, old);
        match old {
            Some(old) => patch.replace(old, index),
            None => patch.append(chunk, "index", &index),
        }
        written(patch, chunk)
    }

    fn choices(&mut self, sample: usize, chunk: &Chunk<'_>) -> Vec<u8> {
        if self.id.is_none() {
            let copy = |raw: Raw<'_>| Bytes::copy_from_slice(raw.bytes());
            self.id = chunk.id.map(copy);
            self.created = chunk.created.map(copy);
        }
        let mut patch = Patch::new(chunk.whole);
        self.rename(chunk, &mut patch);
        for choice in chunk.choices.into_iter().flat_map(Raw::elements) {
            if let Some(old) = choice.get("index") {
                patch.replace(old, self.index(sample, Some(old)));
            }
        }
        written(patch, chunk.whole)
    }

    fn rename<'a>(&'a self, chunk: &Chunk<'a>, patch: &mut Patch<'a>) {
        for (old, value) in [(chunk.id, &self.id), (chunk.created, &self.created)] {
            if let (Some(old), Some(value)) = (old, value) {
                patch.replace(old, &value[..]);
            }
        }
    }

    fn keep(&mut self, sample: usize, chunk: &Chunk<'_>, name: Option<&[u8]>) {
        let held = match name {
            Some(name) => {
                self.name = name.to_vec();
                &mut self.named
            }
            None if chunk.usage.is_some() => &mut self.usage,
            None => &mut self.extension,
        };
        held[sample] = Some(Bytes::copy_from_slice(chunk.whole.bytes()));
    }
}

/// A chunk of an OpenAI stream, read in one walk.
struct Chunk<'a> {
    whole: Raw<'a>,
    id: Option<Raw<'a>>,
    created: Option<Raw<'a>>,
    choices: Option<Raw<'a>>,
    /// Unless it is null.
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

fn written(patch: Patch<'_>, chunk: Raw<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(chunk.bytes().len() + 48);
    patch.write(&mut out);
    out
}
