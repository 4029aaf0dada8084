//! [`Network`]: KV cache transfers that share NICs equally.

/// The transfer of one request's KV cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub(crate) request: usize,
    prefill: usize,
    decode: usize,
    left_bytes: f64,
    rate: f64,
    /// Whether prefill has no more to add.
    complete: bool,
    pub(crate) sent_bytes: f64,
    pub(crate) active_ms: f64,
}

/// The transfers, and the bandwidth of each NIC.
#[derive(Debug)]
pub(crate) struct Network {
    transfers: Vec<Transfer>,
    /// Bandwidth that background traffic leaves, in bytes per millisecond, by node.
    pub(crate) tx_free: Vec<f64>,
    pub(crate) rx_free: Vec<f64>,
    /// Pairs whose path is slower than their NICs: prefill, decode, bytes per millisecond.
    pub(crate) slow_pairs: Vec<(usize, usize, f64)>,
    now: f64,
    /// Number of changes. An end that was predicted before a change is invalid.
    pub(crate) version: u64,
}

impl Network {
    pub(crate) fn new(prefills: usize, decodes: usize, nic: f64) -> Network {
        Network {
            transfers: Vec::new(),
            tx_free: vec![nic; prefills],
            rx_free: vec![nic; decodes],
            slow_pairs: Vec::new(),
            now: 0.0,
            version: 0,
        }
    }

    /// Adds a part of a request's KV cache to its transfer.
    pub(crate) fn send(
        &mut self,
        request: usize,
        pair: (usize, usize),
        bytes: f64,
        complete: bool,
    ) {
        if let Some(transfer) =
            self.transfers.iter_mut().find(|transfer| transfer.request == request)
        {
            transfer.left_bytes += bytes;
            transfer.complete = complete;
            return;
        }
        self.transfers.push(Transfer {
            request,
            prefill: pair.0,
            decode: pair.1,
            left_bytes: bytes,
            rate: 0.0,
            complete,
            sent_bytes: 0.0,
            active_ms: 0.0,
        });
    }

    /// Advances the transfers to `now`. Removes and returns those that are complete.
    pub(crate) fn advance(&mut self, now: f64) -> Vec<Transfer> {
        let passed = now - self.now;
        self.now = now;
        for transfer in self.transfers.iter_mut().filter(|transfer| transfer.left_bytes > 0.0) {
            let bytes = (transfer.rate * passed).min(transfer.left_bytes);
            transfer.left_bytes -= bytes;
            transfer.sent_bytes += bytes;
            transfer.active_ms += passed;
            // Less than a packet is a rounding error.
            if transfer.left_bytes < 1000.0 {
                transfer.sent_bytes += transfer.left_bytes;
                transfer.left_bytes = 0.0;
            }
        }
        let done = |transfer: &Transfer| transfer.complete && transfer.left_bytes == 0.0;
        let ended = self.transfers.iter().copied().filter(done).collect();
        self.transfers.retain(|transfer| !done(transfer));
        ended
    }

    /// Recomputes the bandwidth of all transfers, after every change. Returns the next end.
    pub(crate) fn share(&mut self) -> Option<f64> {
        self.version += 1;
        let mut tx = vec![0.0f64; self.tx_free.len()];
        let mut rx = vec![0.0f64; self.rx_free.len()];
        for transfer in self.transfers.iter().filter(|transfer| transfer.left_bytes > 0.0) {
            tx[transfer.prefill] += 1.0;
            rx[transfer.decode] += 1.0;
        }
        let mut next = f64::INFINITY;
        for transfer in &mut self.transfers {
            if transfer.left_bytes == 0.0 {
                transfer.rate = 0.0;
                continue;
            }
            let path =
                self.slow_pairs.iter().find(|p| (p.0, p.1) == (transfer.prefill, transfer.decode));
            let share = (self.tx_free[transfer.prefill] / tx[transfer.prefill])
                .min(self.rx_free[transfer.decode] / rx[transfer.decode])
                .min(path.map_or(f64::INFINITY, |path| path.2));
            transfer.rate = share;
            next = next.min(transfer.left_bytes / share);
        }
        next.is_finite().then_some(self.now + next)
    }

    /// Returns the current sending rate of a prefill.
    pub(crate) fn tx_rate(&self, prefill: usize) -> f64 {
        self.transfers
            .iter()
            .filter(|transfer| transfer.prefill == prefill)
            .map(|transfer| transfer.rate)
            .sum()
    }

    /// Returns the current receiving rate of a decode.
    pub(crate) fn rx_rate(&self, decode: usize) -> f64 {
        self.transfers
            .iter()
            .filter(|transfer| transfer.decode == decode)
            .map(|transfer| transfer.rate)
            .sum()
    }

    /// Removes the transfers of the requests that are `gone`.
    pub(crate) fn remove(&mut self, gone: impl Fn(usize) -> bool) {
        self.transfers.retain(|transfer| !gone(transfer.request));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_transfers_share_a_nic_and_bytes_are_conserved() {
        let mut network = Network::new(2, 2, 1000.0);
        network.send(1, (0, 0), 1_000_000.0, true);
        network.send(2, (0, 1), 2_000_000.0, true);
        assert_eq!(network.share(), Some(2000.0));
        let ended = network.advance(2000.0);
        assert_eq!(ended.iter().map(|transfer| transfer.request).collect::<Vec<_>>(), [1]);
        assert_eq!(network.share(), Some(3000.0), "the other has the NIC alone now");
        let ended = network.advance(3000.0);
        assert_eq!(ended[0].sent_bytes, 2_000_000.0);
    }
}
