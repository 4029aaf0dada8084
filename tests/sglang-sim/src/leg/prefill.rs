//! A leg on a prefill server: wait for the decode, compute, push, answer with one token.

use std::time::Instant;

use tokio::time::timeout;

use crate::kv::control;
use crate::kv::data;
use crate::rank::Attendance;
use crate::token::Detokenizer;
use crate::words;

use super::{Finish, Leg, Room, Token};

impl Leg<'_> {
    pub(super) async fn prefill(&self) -> Result<Finish, Finish> {
        let room = match self.job.room {
            Some(Room::Number(room)) => room,
            // An unhandled exception in the scheduler takes the whole server down.
            Some(Room::Overflow(_)) => {
                self.life.die();
                return std::future::pending().await;
            }
            None if self.life.ranks.len() > 1 => {
                self.life.die();
                return std::future::pending().await;
            }
            None => return Err(self.missing_room()),
        };
        if self.alone() {
            let (_slot, _running) = self.slot().await?;
            let _tokens = self.rank.counts.tokens.enter_with(self.job.prompt.len());
            let computed = self.forward().await;
            return Ok(self.answer(computed).await);
        }
        self.life.ledger.room(room);
        self.obey_room(room)?;
        let attendance = self.rank.enter(room);
        self.bootstrap(&attendance).await?;

        let waited = self.slot().await;
        let (_slot, _running) = waited.inspect_err(|_| self.dismiss(&attendance))?;
        let _tokens = self.rank.counts.tokens.enter_with(self.job.prompt.len());
        let computed = self.forward().await;
        self.transfer(&attendance, computed).await?;
        Ok(self.answer(computed).await)
    }

    /// A prefill that follows rooms refuses a rank forced against its room.
    fn obey_room(&self, room: u64) -> Result<(), Finish> {
        let size = self.life.ranks.len() as u64;
        let Some(forced) = self.job.routed_rank.filter(|rank| *rank != room % size) else {
            return Ok(());
        };
        if self.life.is_old() || self.job.prefill_rank.is_some() {
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
        let (rid, room) = (&self.job.rid, self.job.room_text());
        Finish::abort(
            500,
            format!(
                "Prefill {what} failed for request rank=0 req.rid='{rid}' \
                 req.bootstrap_room={room} with exception \
                 KVTransferError(bootstrap_room={room}): {reason}"
            ),
        )
    }

    /// Waits until a decode has sent its KV indices; the clock starts with the request.
    async fn bootstrap(&self, attendance: &Attendance) -> Result<(), Finish> {
        let counts = &self.rank.counts;
        let _waiting = counts.bootstrap.enter();
        let _pending = counts.pending_tokens.enter_with(self.job.prompt.len());
        let limit = self.life.config.timing.bootstrap_timeout;
        let started = Instant::now();
        let meeting = async {
            if self.job.never_meets {
                return std::future::pending().await;
            }
            attendance.bootstrapped().await
        };
        let outcome = tokio::select! {
            outcome = timeout(limit, meeting) => outcome,
            () = self.aborted.cancelled() => {
                self.dismiss(attendance);
                return Err(self.prefill_failure("bootstrap", "Aborted by AbortReq."));
            }
        };
        self.life.meters.bootstrapped(started.elapsed());
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(reason)) => Err(self.prefill_failure("bootstrap", &reason)),
            Err(_) => {
                self.life.turn().await;
                self.life.meters.bootstrap_failed();
                let room = attendance.room;
                let elapsed = started.elapsed().as_secs_f64();
                let reason =
                    format!("Request {room} timed out after {elapsed:.1}s in KVPoll.Bootstrapping");
                Err(self.prefill_failure("bootstrap", &reason))
            }
        }
    }

    /// Tells the decode that nothing will come; the old engine leaves it waiting.
    fn dismiss(&self, attendance: &Attendance) {
        if self.life.is_old() {
            return;
        }
        if let Some(invitation) = attendance.take_invitation() {
            let message = control::status(attendance.room, control::FAILED);
            self.life.outboxes.send(self.life, invitation.control, message);
        }
    }

    async fn transfer(
        &self,
        attendance: &Attendance,
        computed: data::Computed,
    ) -> Result<(), Finish> {
        let _inflight = self.rank.counts.inflight.enter();
        if self.aborted.is_cancelled() {
            self.dismiss(attendance);
            return Err(self.prefill_failure("transfer", "Aborted by AbortReq."));
        }
        // Another leg with the same room has taken it: the engine counts that as done.
        let Some(invitation) = attendance.take_invitation() else { return Ok(()) };
        let started = Instant::now();
        let pushed = tokio::select! {
            pushed = data::push(self.life, &invitation, computed, self.job.prompt.len()) => pushed,
            reason = attendance.failure() => return Err(self.prefill_failure("transfer", &reason)),
        };
        self.life.turn().await;
        match pushed {
            Ok(bytes) => {
                self.life.meters.transferred(bytes, started.elapsed());
                let message = control::status(attendance.room, control::SUCCESS);
                self.life.outboxes.send(self.life, invitation.control, message);
                Ok(())
            }
            Err(_) => {
                self.life.meters.transfer_failed();
                let message = control::status(attendance.room, control::FAILED);
                self.life.outboxes.send(self.life, invitation.control, message);
                let reason = format!(
                    "Failed to send kv chunk of {} to {}",
                    attendance.room, invitation.control
                );
                Err(self.prefill_failure("transfer", &reason))
            }
        }
    }

    async fn answer(&self, computed: data::Computed) -> Finish {
        let text = Detokenizer::default().push(computed.first);
        let logprob = words::logprob(computed.first, 0);
        let token = Token { id: computed.first, text, logprob };
        self.say(Some(token), Some(Finish::Length(0))).await;
        self.life.meters.done(self.job.prompt.len(), 1, self.begun.elapsed());
        Finish::Length(0)
    }
}
