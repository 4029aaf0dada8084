//! A leg on a decode: find the prefill, reserve KV, send the transfer info, receive KV, generate.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::discovery::{self, DiscoveryError};
use crate::gauge::GaugeGuard;
use crate::kv::control::{self, TransferInfo};
use crate::kv::data::PrefillResult;
use crate::rank::TransferState;

use super::{Finish, Room, RunningLeg};

/// Maximum number of KV tokens reserved for the answer of one request.
const MAX_ANSWER_RESERVE: usize = 512;

/// A running slot and KV tokens, released when the request ends.
struct Reservation {
    _slot: OwnedSemaphorePermit,
    _tokens: OwnedSemaphorePermit,
    _in_use: GaugeGuard,
}

impl RunningLeg<'_> {
    pub(super) async fn decode(&self) -> Result<Finish, Finish> {
        let room = match self.spec.room {
            Some(Room::Number(room)) => room,
            // Decode only records the number; no prefill will answer for it.
            Some(Room::Overflow(_)) => u64::MAX,
            None if self.process.ranks.len() > 1 => {
                self.process.kill();
                return std::future::pending().await;
            }
            None => return Err(self.missing_room()),
        };
        self.check_capacity()?;
        if self.skips_transfer() {
            let _reservation = self.reserve().await?;
            let _running = self.rank.gauges.running.enter();
            return Ok(self.generate(self.prefill_result()).await);
        }
        self.process.recorder.room(room);
        let preallocating = self.rank.gauges.prealloc.enter();
        let peer = self.handshake(room).await?;
        let _reservation = self.reserve().await?;
        tokio::time::sleep(self.scaled(self.process.config.decode_admission)).await;
        drop(preallocating);
        let result = self.receive(room, peer).await?;
        tokio::time::sleep(self.scaled(self.process.config.decode_first_step)).await;
        let _running = self.rank.gauges.running.enter();
        Ok(self.generate(result).await)
    }

    fn bootstrap_address(&self) -> String {
        let port = self
            .spec
            .bootstrap_port
            .unwrap_or_else(|| self.process.config.default_bootstrap_port());
        format!("{}:{port}", self.spec.bootstrap_host.as_deref().unwrap_or("None"))
    }

    fn check_capacity(&self) -> Result<(), Finish> {
        let (tokens, max) = (self.spec.prompt.len(), self.process.config.max_total_tokens);
        if tokens <= max {
            return Ok(());
        }
        let message = format!(
            "Request {} exceeds the maximum number of tokens: {tokens} > {max}",
            self.spec.rid
        );
        let status = (!self.process.is_0_4()).then_some(400);
        Err(Finish::Abort { message, status })
    }

    fn decode_failure(&self, what: &str, reason: &str) -> Finish {
        let (rid, room) = (&self.spec.rid, self.spec.room_text());
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
        if self.spec.never_rendezvous {
            return Ok(self.rank.control);
        }
        let bootstrap = self.bootstrap_address();
        let own = self.rank.control;
        let lookup =
            discovery::find_rank(self.process, &bootstrap, room, self.spec.prefill_rank, own);
        let result = tokio::select! {
            result = lookup => result,
            () = self.aborted.cancelled() => Err(DiscoveryError::Reason("Aborted by AbortReq.".into())),
        };
        match result {
            Ok(address) => Ok(address),
            Err(DiscoveryError::Reason(reason)) => {
                self.process.stats.bootstrap_failed();
                Err(self.decode_failure("handshake", &reason))
            }
            Err(DiscoveryError::Mismatch) => {
                self.process.kill();
                std::future::pending().await
            }
        }
    }

    /// Waits for a running slot and for KV tokens, in order of arrival.
    async fn reserve(&self) -> Result<Reservation, Finish> {
        let config = &self.process.config;
        let gauges = &self.rank.gauges;
        let full = self.rank.running.available_permits() == 0;
        if config.max_queued_requests.is_some_and(|max| full && gauges.queued.now() >= max) {
            return Err(Finish::abort(503, "The request queue is full."));
        }
        let prompt = self.spec.prompt.len();
        let wanted = prompt + self.spec.max_new_tokens.min(MAX_ANSWER_RESERVE);
        let wanted = wanted.min(config.max_total_tokens);
        let _queued = gauges.queued.enter();
        let _pending = gauges.pending_tokens.enter_with(prompt);
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
            _in_use: gauges.tokens.enter_with(prompt),
        })
    }

    /// Sends the transfer info to the prefill and waits for the KV.
    async fn receive(&self, room: u64, peer: SocketAddr) -> Result<PrefillResult, Finish> {
        let _transferring = self.rank.gauges.transfer.enter();
        let _pending = self.rank.gauges.pending_tokens.enter_with(self.spec.prompt.len());
        let slot = self.process.slots.take();
        let receiver_guard = self.rank.expect_transfer(room, self.bootstrap_address(), peer);
        let mut state = receiver_guard.receiver.state.subscribe();
        let started = Instant::now();
        if !self.spec.never_rendezvous {
            self.send_transfer_info(room, peer, slot.number);
        }
        let limit = self.process.config.timing.waiting_timeout;
        let arrival = async {
            let state = state.wait_for(|state| *state != TransferState::Waiting).await;
            state.expect("the sender lives as long as the guard").clone()
        };
        let outcome = tokio::select! {
            outcome = timeout(limit, arrival) => outcome,
            () = self.aborted.cancelled() => {
                Ok(TransferState::Failed("Aborted by AbortReq.".into()))
            }
        };
        self.process.wait_for_scheduler().await;
        let reason = match outcome {
            Ok(TransferState::Arrived) => {
                self.process.stats.allocated(started.elapsed());
                // The room is done but the slot is empty: another request with this room got the
                // bytes.
                return slot.result().ok_or_else(|| {
                    let message = "Metadata corruption detected - bootstrap_room mismatch";
                    Finish::abort(500, message)
                });
            }
            Ok(TransferState::Failed(reason)) => reason,
            Ok(TransferState::Waiting) | Err(_) => timed_out(room, started.elapsed()),
        };
        self.process.stats.transfer_failed();
        if self.aborted.is_cancelled() && !self.process.is_0_4() && !self.spec.never_rendezvous {
            self.process.outboxes.send(self.process, peer, control::abort(room, self.rank.control));
        }
        Err(self.decode_failure("transfer", &reason))
    }

    fn send_transfer_info(&self, room: u64, peer: SocketAddr, slot: u64) {
        let Some(data) = self.process.data else { return };
        let transfer_info = TransferInfo { room, control: self.rank.control, data, slot };
        let pages = self.spec.prompt.len().div_ceil(self.process.config.page_size.max(1) as usize);
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        let message = control::transfer_info(&transfer_info, pages, self.process.is_0_4());
        self.process.outboxes.send(self.process, peer, message);
    }
}

fn timed_out(room: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    format!("Request {room} timed out after {seconds:.1}s in KVPoll.WaitingForInput")
}
