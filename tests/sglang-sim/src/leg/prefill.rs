//! A leg on a prefill: wait for the decode, compute, push KV, answer with one token.

use std::time::Instant;

use tokio::time::timeout;

use crate::kv::control;
use crate::kv::data;
use crate::model;
use crate::rank::RoomGuard;
use crate::tokenizer::Detokenizer;

use super::{Finish, Room, RunningLeg, Token};

impl RunningLeg<'_> {
    pub(super) async fn prefill(&self) -> Result<Finish, Finish> {
        let room = match self.spec.room {
            Some(Room::Number(room)) => room,
            // An unhandled exception in the scheduler ends the whole server.
            Some(Room::Overflow(_)) => {
                self.process.kill();
                return std::future::pending().await;
            }
            None if self.process.ranks.len() > 1 => {
                self.process.kill();
                return std::future::pending().await;
            }
            None => return Err(self.missing_room()),
        };
        if self.skips_transfer() {
            let (_slot, _running) = self.slot().await?;
            let _tokens = self.rank.gauges.tokens.enter_with(self.spec.prompt.len());
            let result = self.forward().await?;
            return Ok(self.answer(result).await);
        }
        self.process.recorder.room(room);
        self.check_forced_rank(room)?;
        let room_guard = self.rank.enter_room(room);
        self.bootstrap(&room_guard).await?;

        let waited = self.slot().await;
        let (_slot, _running) = waited.inspect_err(|_| self.notify_decode(&room_guard))?;
        let _tokens = self.rank.gauges.tokens.enter_with(self.spec.prompt.len());
        let result = self.forward().await.inspect_err(|_| self.notify_decode(&room_guard))?;
        self.transfer(&room_guard, result).await?;
        Ok(self.answer(result).await)
    }

    /// A prefill that follows bootstrap rooms rejects a forced rank that the room does not lead to.
    fn check_forced_rank(&self, room: u64) -> Result<(), Finish> {
        let size = self.process.ranks.len() as u64;
        let Some(forced) = self.spec.routed_rank.filter(|rank| *rank != room % size) else {
            return Ok(());
        };
        if self.process.is_0_4() || self.spec.prefill_rank.is_some() {
            return Ok(());
        }
        Err(self.prefill_failure(
            "bootstrap",
            &format!(
                "follow_bootstrap_room conflict: dispatched to dp_rank {forced} but bootstrap_room \
                 {room} implies dp_rank {}. Set SGLANG_DISAGGREGATION_FORCE_QUERY_PREFILL_DP_RANK=1 \
                 to allow mixed routing.",
                room % size
            ),
        ))
    }

    fn prefill_failure(&self, what: &str, reason: &str) -> Finish {
        let (rid, room) = (&self.spec.rid, self.spec.room_text());
        Finish::abort(
            500,
            format!(
                "Prefill {what} failed for request rank=0 req.rid='{rid}' \
                 req.bootstrap_room={room} with exception \
                 KVTransferError(bootstrap_room={room}): {reason}"
            ),
        )
    }

    /// Waits until a decode has sent its KV indices. The timeout starts with the request.
    async fn bootstrap(&self, room_guard: &RoomGuard) -> Result<(), Finish> {
        let gauges = &self.rank.gauges;
        let _waiting = gauges.bootstrap.enter();
        let _pending = gauges.pending_tokens.enter_with(self.spec.prompt.len());
        let limit = self.process.config.timing.bootstrap_timeout;
        let started = Instant::now();
        let bootstrapped = async {
            if self.spec.never_rendezvous {
                return std::future::pending().await;
            }
            room_guard.bootstrapped().await
        };
        let outcome = tokio::select! {
            outcome = timeout(limit, bootstrapped) => outcome,
            () = self.aborted.cancelled() => {
                self.notify_decode(room_guard);
                return Err(self.prefill_failure("bootstrap", "Aborted by AbortReq."));
            }
        };
        self.process.stats.bootstrapped(started.elapsed());
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(self.prefill_failure("bootstrap", &reason)),
            Err(_) => {
                self.process.wait_for_scheduler().await;
                self.process.stats.bootstrap_failed();
                let room = room_guard.room;
                let elapsed = started.elapsed().as_secs_f64();
                let reason =
                    format!("Request {room} timed out after {elapsed:.1}s in KVPoll.Bootstrapping");
                Err(self.prefill_failure("bootstrap", &reason))
            }
        }
    }

    /// Notifies the decode that no KV will come. 0.4 lets the decode wait.
    fn notify_decode(&self, room_guard: &RoomGuard) {
        if self.process.is_0_4() {
            return;
        }
        if let Some(transfer_info) = room_guard.take_transfer_info() {
            let message = control::status(room_guard.room, control::FAILED);
            self.process.outboxes.send(self.process, transfer_info.control, message);
        }
    }

    async fn transfer(
        &self,
        room_guard: &RoomGuard,
        result: data::PrefillResult,
    ) -> Result<(), Finish> {
        let _inflight = self.rank.gauges.inflight.enter();
        if self.aborted.is_cancelled() {
            self.notify_decode(room_guard);
            return Err(self.prefill_failure("transfer", "Aborted by AbortReq."));
        }
        // Another leg with this room has taken it. The engine counts that as done.
        let Some(transfer_info) = room_guard.take_transfer_info() else { return Ok(()) };
        let started = Instant::now();
        tokio::time::sleep(self.scaled(self.process.config.kv_transfer)).await;
        let pushed = tokio::select! {
            pushed = data::push(self.process, &transfer_info, result, self.spec.prompt.len()) => pushed,
            reason = room_guard.failure() => return Err(self.prefill_failure("transfer", &reason)),
        };
        self.process.wait_for_scheduler().await;
        match pushed {
            Ok(bytes) => {
                self.process.stats.transferred(bytes, started.elapsed());
                let message = control::status(room_guard.room, control::SUCCESS);
                self.process.outboxes.send(self.process, transfer_info.control, message);
                Ok(())
            }
            Err(_) => {
                self.process.stats.transfer_failed();
                let message = control::status(room_guard.room, control::FAILED);
                self.process.outboxes.send(self.process, transfer_info.control, message);
                let reason = format!(
                    "Failed to send kv chunk of {} to {}",
                    room_guard.room, transfer_info.control
                );
                Err(self.prefill_failure("transfer", &reason))
            }
        }
    }

    async fn answer(&self, result: data::PrefillResult) -> Finish {
        let text = Detokenizer::default().push(result.first_token);
        let logprob = model::logprob(result.first_token, 0);
        let token = Token { id: result.first_token, text, logprob };
        self.emit(Some(token), Some(Finish::Length(0))).await;
        self.process.stats.done(self.spec.prompt.len(), 1, self.started.elapsed());
        Finish::Length(0)
    }
}
