//! n event streams in, one out.

use bytes::Bytes;

use super::super::fault::{EngineFault, event_fault};
use super::super::json::{Kind, Patch, Raw};
use super::super::{Endpoint, sse};
use super::{decimal, extension, usage};

/// Merges the streams of `samples` single-sample requests as their events arrive.
///
/// All events get the id and the time of the first one and the index of their sample; the n
/// usage chunks become one, the n `[DONE]` too. Holds, at most, a usage chunk and an extension
/// chunk of each sample.
///
/// ```
/// use router_core::sglang::{Endpoint, merge::Stream};
///
/// let mut stream = Stream::new(Endpoint::Completions, 2);
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
pub struct Stream {
    endpoint: Endpoint,
    /// Which samples have said `[DONE]`.
    done: Vec<bool>,
    /// The values of `id` and `created` that all events carry.
    id: Option<Bytes>,
    created: Option<Bytes>,
    /// Each sample's last chunk without choices that has a usage, and the one that has none.
    usage: Vec<Option<Bytes>>,
    extension: Vec<Option<Bytes>>,
}

impl Stream {
    pub fn new(endpoint: Endpoint, samples: u32) -> Stream {
        let samples = samples as usize;
        Stream {
            endpoint,
            done: vec![false; samples],
            id: None,
            created: None,
            usage: vec![None; samples],
            extension: vec![None; samples],
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
        let chunk = Raw::parse(&data).ok().filter(|raw| raw.kind() == Kind::Object);
        let (Some(chunk), true) = (chunk, sample < self.done.len()) else {
            let message = "the engine sent an event that is not of its protocol".to_owned();
            return Err(EngineFault { status: 502, message });
        };
        let rewritten = match self.endpoint {
            Endpoint::Generate => self.answer(sample, chunk),
            _ => match chunk.get("choices").map(|choices| choices.elements().next().is_some()) {
                Some(false) => {
                    self.keep(sample, chunk);
                    return Ok(None);
                }
                _ => self.choices(sample, chunk),
            },
        };
        Ok(Some(sse::with_data(event, &rewritten).into()))
    }

    /// Whether every stream has ended with `[DONE]`; one that ended without was cut.
    pub fn is_complete(&self) -> bool {
        self.done.iter().all(|done| *done)
    }

    /// The end of the merged stream: what was held, merged, and one `[DONE]`.
    pub fn finish(self) -> Bytes {
        let mut out = Vec::new();
        for held in [&self.extension, &self.usage] {
            let chunks: Vec<Raw<'_>> =
                held.iter().flatten().map(|chunk| Raw::trusted(chunk)).collect();
            let Some(&first) = chunks.first() else { continue };
            let mut patch = Patch::new(first);
            self.rename(first, &mut patch);
            let usages: Vec<Raw<'_>> =
                chunks.iter().filter_map(|chunk| chunk.get("usage")).collect();
            if let Some(old) = first.get("usage") {
                patch.replace(old, usage::merge(&usages));
            }
            extension(first, &chunks, &mut patch);
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

    fn choices(&mut self, sample: usize, chunk: Raw<'_>) -> Vec<u8> {
        let copy = |key| chunk.get(key).map(|raw| Bytes::copy_from_slice(raw.bytes()));
        if self.id.is_none() {
            self.id = copy("id");
            self.created = copy("created");
        }
        let mut patch = Patch::new(chunk);
        self.rename(chunk, &mut patch);
        for choice in chunk.get("choices").into_iter().flat_map(Raw::elements) {
            if let Some(old) = choice.get("index") {
                patch.replace(old, self.index(sample, Some(old)));
            }
        }
        written(patch, chunk)
    }

    fn rename<'a>(&self, chunk: Raw<'a>, patch: &mut Patch<'a>) {
        for (key, value) in [("id", &self.id), ("created", &self.created)] {
            if let (Some(old), Some(value)) = (chunk.get(key), value) {
                patch.replace(old, value.to_vec());
            }
        }
    }

    fn keep(&mut self, sample: usize, chunk: Raw<'_>) {
        let has_usage = chunk.get("usage").is_some_and(|usage| !usage.is_null());
        let held = if has_usage { &mut self.usage } else { &mut self.extension };
        held[sample] = Some(Bytes::copy_from_slice(chunk.bytes()));
    }
}

fn written(patch: Patch<'_>, chunk: Raw<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(chunk.bytes().len() + 48);
    patch.write(&mut out);
    out
}
