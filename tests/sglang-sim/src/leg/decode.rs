//! A leg on a decode server: find the prefill, reserve KV, invite, wait for the bytes, generate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::count::Presence;
use crate::kv::control::{self, Invitation};
use crate::kv::data::Computed;
use crate::peers::{self, Unmet};
use crate::rank::Transfer;

use super::{Finish, Leg, Room};

/// Tokens that a decode keeps free for each request's answer, at most.
const RESERVED_FOR_ANSWER: usize = 512;

/// A running slot and KV tokens, held until the request ends.
struct Reservation {
    _slot: OwnedSemaphorePermit,
    _tokens: OwnedSemaphorePermit,
    _in_use: Presence,
}

impl Leg<'_> {
    pub(super) async fn decode(&self) -> Result<Finish, Finish> {
        let room = match self.job.room {
            Some(Room::Number(room)) => room,
            // Decode only writes the number down; nobody will answer it.
            Some(Room::Overflow(_)) => u64::MAX,
            None if self.life.ranks.len() > 1 => {
                self.life.die();
                return std::future::pending().await;
            }
            None => return Err(self.missing_room()),
        };
        self.fits()?;
        if self.alone() {
            let _reservation = self.reserve().await?;
            let _running = self.rank.counts.running.enter();
            return Ok(self.generate(self.computed()).await);
        }
        self.life.ledger.room(room);
        let preallocating = self.rank.counts.prealloc.enter();
        let peer = self.handshake(room).await?;
        let _reservation = self.reserve().await?;
        drop(preallocating);
        let computed = self.receive(room, peer).await?;
        let _running = self.rank.counts.running.enter();
        Ok(self.generate(computed).await)
    }

    fn bootstrap_address(&self) -> String {
        let port =
            self.job.bootstrap_port.unwrap_or_else(|| self.life.config.default_bootstrap_port());
        format!("{}:{port}", self.job.bootstrap_host.as_deref().unwrap_or("None"))
    }

    fn fits(&self) -> Result<(), Finish> {
        let (tokens, most) = (self.job.prompt.len(), self.life.config.max_total_tokens);
        if tokens <= most {
            return Ok(());
        }
        let message = format!(
            "Request {} exceeds the maximum number of tokens: {tokens} > {most}",
            self.job.rid
        );
        let status = (!self.life.is_old()).then_some(400);
        Err(Finish::Abort { message, status })
    }

    fn decode_failure(&self, what: &str, reason: &str) -> Finish {
        let (rid, room) = (&self.job.rid, self.job.room_text());
        Finish::abort(
            500,
            format!(
                "Decode {what} failed for request rank=0 decode_req.req.rid='{rid}' \
                 decode_req.req.bootstrap_room={room} with exception \
                 KVTransferError(bootstrap_room={room}): {reason}"
            ),
        )
    }

    /// Finds the prefill rank in its registry.
    async fn handshake(&self, room: u64) -> Result<SocketAddr, Finish> {
        if self.job.never_meets {
            return Ok(self.rank.control);
        }
        let bootstrap = self.bootstrap_address();
        let own = self.rank.control;
        let meeting = peers::meet(self.life, &bootstrap, room, self.job.prefill_rank, own);
        let met = tokio::select! {
            met = meeting => met,
            () = self.aborted.cancelled() => Err(Unmet::Reason("Aborted by AbortReq.".into())),
        };
        match met {
            Ok(address) => Ok(address),
            Err(Unmet::Reason(reason)) => {
                self.life.meters.bootstrap_failed();
                Err(self.decode_failure("handshake", &reason))
            }
            Err(Unmet::Mismatch) => {
                self.life.die();
                std::future::pending().await
            }
        }
    }

    /// Waits for a slot and for KV tokens, in order of arrival.
    async fn reserve(&self) -> Result<Reservation, Finish> {
        let config = &self.life.config;
        let counts = &self.rank.counts;
        let full = self.rank.running.available_permits() == 0;
        if config.max_queued_requests.is_some_and(|most| full && counts.queued.now() >= most) {
            return Err(Finish::abort(503, "The request queue is full."));
        }
        let prompt = self.job.prompt.len();
        let wanted = prompt + self.job.max_new_tokens.min(RESERVED_FOR_ANSWER);
        let wanted = wanted.min(config.max_total_tokens);
        let _queued = counts.queued.enter();
        let _pending = counts.pending_tokens.enter_with(prompt);
        let both = async {
            let slot = Arc::clone(&self.rank.running).acquire_owned().await;
            let tokens = Arc::clone(&self.rank.kv_tokens)
                .acquire_many_owned(u32::try_from(wanted).unwrap_or(u32::MAX))
                .await;
            (slot, tokens)
        };
        let (slot, tokens) = tokio::select! {
            both = both => both,
            () = self.aborted.cancelled() => {
                return Err(self.decode_failure("handshake", "Aborted by AbortReq."));
            }
        };
        Ok(Reservation {
            _slot: slot.expect("the running slots are never closed"),
            _tokens: tokens.expect("the KV tokens are never closed"),
            _in_use: counts.tokens.enter_with(prompt),
        })
    }

    /// Invites the prefill and waits until its KV is here.
    async fn receive(&self, room: u64, peer: SocketAddr) -> Result<Computed, Finish> {
        let _transferring = self.rank.counts.transfer.enter();
        let _pending = self.rank.counts.pending_tokens.enter_with(self.job.prompt.len());
        let slot = self.life.slots.take();
        let expectation = self.rank.expect(room, self.bootstrap_address(), peer);
        let mut state = expectation.receiver.state.subscribe();
        let started = Instant::now();
        if !self.job.never_meets {
            self.invite(room, peer, slot.number);
        }
        let limit = self.life.config.timing.waiting_timeout;
        let arrival = async {
            let state = state.wait_for(|state| *state != Transfer::Waiting).await;
            state.expect("the sender lives in the expectation").clone()
        };
        let outcome = tokio::select! {
            outcome = timeout(limit, arrival) => outcome,
            () = self.aborted.cancelled() => {
                Ok(Transfer::Failed("Aborted by AbortReq.".into()))
            }
        };
        self.life.turn().await;
        let reason = match outcome {
            Ok(Transfer::Arrived) => {
                self.life.meters.allocated(started.elapsed());
                // Nothing in the slot although the room is done: the bytes went elsewhere.
                return slot.computed().ok_or_else(|| {
                    let message = "Metadata corruption detected - bootstrap_room mismatch";
                    Finish::abort(500, message)
                });
            }
            Ok(Transfer::Failed(reason)) => reason,
            Ok(Transfer::Waiting) | Err(_) => timed_out(room, started.elapsed()),
        };
        self.life.meters.transfer_failed();
        if self.aborted.is_cancelled() && !self.life.is_old() && !self.job.never_meets {
            self.life.outboxes.send(self.life, peer, control::abort(room, self.rank.control));
        }
        Err(self.decode_failure("transfer", &reason))
    }

    fn invite(&self, room: u64, peer: SocketAddr, slot: u64) {
        let Some(data) = self.life.data else { return };
        let invitation = Invitation { room, control: self.rank.control, data, slot };
        let pages = self.job.prompt.len().div_ceil(self.life.config.page_size.max(1) as usize);
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        let message = control::invitation(&invitation, pages, self.life.is_old());
        self.life.outboxes.send(self.life, peer, message);
    }
}

fn timed_out(room: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    format!("Request {room} timed out after {seconds:.1}s in KVPoll.WaitingForInput")
}
