//! The law of request bodies.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::is_json;
use crate::pair::Pair;
use crate::sglang::{
    AllowedFields, Attempt, BodyType, BootstrapAddress, ContentKey, Endpoint, OneEngineRequest,
    Request, Rid, Room,
};

/// Members that the gateway sets or changes in the body of a leg.
const CHANGED: [&str; 6] =
    ["bootstrap_host", "bootstrap_port", "bootstrap_room", "rid", "request_id", "stream"];

/// Request bodies, with the endpoint chosen by the first byte: an accepted request yields bodies that are
/// JSON for another parser, in which the client's members have the client's values and none is lost but those
/// that are removed. Injecting into them again changes nothing, and they have the content of the request.
pub fn request(bytes: &[u8]) {
    let Some((first, body)) = bytes.split_first() else { return };
    let endpoint = Endpoint::ALL[usize::from(*first) % Endpoint::ALL.len()];
    one_engine(body);
    let Ok(request) = Request::parse(endpoint, Bytes::copy_from_slice(body)) else { return };
    assert!(is_json(body), "accepted, but not JSON");
    let prompt: usize = request.prompt_text().map(<[u8]>::len).sum();
    assert!(prompt <= body.len());
    let once = inject(&request);
    for (of, streams) in [(prefill as Leg, false), (decode, request.stream())] {
        let leg = of(&once);
        assert!(is_json(leg), "{leg:?}");
        let again = Request::parse(endpoint, leg.clone()).expect("an injected body is accepted");
        assert_eq!((again.stream(), again.samples()), (streams, 1));
        assert_eq!(again.rooms(), request.rooms());
        assert_eq!(of(&inject(&again)), leg);
        // The legs of more samples have another `n`.
        if request.samples() == 1 {
            let key = ContentKey([7, 11]);
            assert_eq!(again.content_hash(key, ""), request.content_hash(key, ""));
        }
    }
    // The other parser has a limit of depth, so it does not read everything that is accepted.
    let Some(sent) = object(body) else { return };
    assert_eq!(request.model(), sent.get("model").and_then(Value::as_str));
    if request.rooms() == 1 && request.batch().is_none() {
        let room = object(&once.decode).and_then(|leg| leg.get("bootstrap_room").cloned());
        assert_eq!(room, Some(Room::from_random(0).value().into()));
    }
    let plain = request.plain(&rids(&request)).to_bytes();
    for (leg, n_changes) in [(&once.prefill, true), (&once.decode, true), (&plain, false)] {
        keeps_values(&sent, leg, n_changes);
    }
    keeps_members(endpoint, &sent, &once.prefill, &["stream_options"]);
    keeps_members(endpoint, &sent, &once.decode, &[]);
    keeps_members(endpoint, &sent, &plain, &[]);
}

/// The paths of requests that one engine serves alone: of one, only the public fields are kept.
fn one_engine(body: &[u8]) {
    let none = AllowedFields::default();
    for path in ["/tokenize", "/encode"] {
        let body = Bytes::copy_from_slice(body);
        let Ok(request) = OneEngineRequest::parse(path, body.clone(), &none) else { return };
        assert!(is_json(request.body()), "{:?}", request.body());
        let again = OneEngineRequest::parse(path, request.body().clone(), &none);
        let again = again.expect("its own body is accepted");
        assert_eq!((again.body(), again.model()), (request.body(), request.model()));
        let Some(sent) = object(&body) else { return };
        assert_eq!(request.model(), sent.get("model").and_then(Value::as_str));
        let kept = object(request.body()).expect("removing members makes nothing deeper");
        for (name, value) in &kept {
            assert_eq!(sent.get(name), Some(value), "{name}");
        }
    }
}

/// Each member of a leg has the client's value, unless the gateway sets it.
fn keeps_values(sent: &Map<String, Value>, leg: &[u8], n_changes: bool) {
    let leg = object(leg).expect("a leg is as deep as the client's body");
    for (name, value) in &leg {
        let is_changed = CHANGED.contains(&name.as_str())
            || (n_changes && matches!(name.as_str(), "n" | "best_of" | "sampling_params"));
        assert!(is_changed || sent.get(name) == Some(value), "{name}: {value}");
    }
}

/// Each member of the client is in a leg, but those that are removed from every leg or `cut` from this one.
fn keeps_members(endpoint: Endpoint, sent: &Map<String, Value>, leg: &[u8], cut: &[&str]) {
    let leg = object(leg).expect("a leg is as deep as the client's body");
    let none = AllowedFields::default();
    for name in sent.keys().map(String::as_str) {
        let is_removed = CHANGED.contains(&name)
            || cut.contains(&name)
            || none.removes(BodyType::Generating(endpoint), name);
        assert!(is_removed || leg.contains_key(name), "{name} is lost");
    }
}

fn object(text: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice(text).ok()
}

type Leg = fn(&Pair<Bytes>) -> &Bytes;

fn prefill(legs: &Pair<Bytes>) -> &Bytes {
    &legs.prefill
}

fn decode(legs: &Pair<Bytes>) -> &Bytes {
    &legs.decode
}

fn rids(request: &Request) -> Vec<Rid> {
    (0..request.rooms() as u128).map(Rid::from_random).collect()
}

fn inject(request: &Request) -> Pair<Bytes> {
    let rooms: Vec<Room> = (0..request.rooms() as u64).map(Room::from_random).collect();
    request
        .inject(&Attempt {
            bootstrap: &BootstrapAddress { host: "h".into(), port: 1 },
            rooms: &rooms,
            rids: &rids(request),
            dp: Pair::default(),
        })
        .map(|body| body.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::inputs;

    #[test]
    fn bytes_near_requests_keep_the_law() {
        inputs::try_law("request", super::request, 20_000);
    }
}
