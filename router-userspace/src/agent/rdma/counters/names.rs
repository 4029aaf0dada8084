//! The counter names of each driver.
//!
//! Sources: each driver's `rdma_stat_desc` table in drivers/infiniband, and the InfiniBand
//! specification (16.1.3.5) for the standard ones, which count data in words of four bytes.

use super::device_counters::{Counter, DeviceCounters};

/// Bytes of the unit of `port_xmit_data` and `port_rcv_data`.
const WORD: u64 = 4;
/// A standard 32-bit counter stops at this value.
const SATURATED: u64 = u32::MAX as u64;

/// The counter that a name in `hw_counters` stands for.
pub(in crate::agent) fn hardware(name: &str) -> Option<Counter> {
    Some(match name {
        // erdma upstream, then as its installer has it; bnxt_re and efa; rxe from 7.2; mlx5's
        // optional ones.
        "tx_bytes_cnt" | "hw_tx_bytes_cnt" | "tx_bytes" | "sent_bytes" | "rdma_tx_bytes" => {
            Counter::TxBytes
        }
        "rx_bytes_cnt" | "hw_rx_bytes_cnt" | "rx_bytes" | "rcvd_bytes" | "rdma_rx_bytes" => {
            Counter::RxBytes
        }
        // irdma: without Ethernet headers, IPv4 and IPv6 apart.
        "ip4OutOctets" | "ip6OutOctets" => Counter::TxBytes,
        "ip4InOctets" | "ip6InOctets" => Counter::RxBytes,
        "tx_packets_cnt" | "hw_tx_packets_cnt" | "tx_pkts" | "sent_pkts" | "rdma_tx_packets"
        | "ip4OutPkts" | "ip6OutPkts" => Counter::TxPackets,
        "rx_packets_cnt" | "hw_rx_packets_cnt" | "rx_pkts" | "rcvd_pkts" | "rdma_rx_packets"
        | "ip4InPkts" | "ip6InPkts" => Counter::RxPackets,
        "tx_reqs_cnt" | "hw_tx_reqs_cnt" | "rdma_sends" => Counter::TxRequests,
        "send_wrs" | "rdma_read_wrs" | "rdma_write_wrs" => Counter::TxRequests,
        "OutRdmaWrites" | "OutRdmaReads" | "OutRdmaSends" | "iwOutRdmaWrites"
        | "iwOutRdmaReads" | "iwOutRdmaSends" => Counter::TxRequests,
        "tx_write_req" | "tx_read_req" | "tx_send_req" | "tx_atomic_req" => Counter::TxRequests,
        "rx_write_requests" | "rx_read_requests" | "rx_atomic_requests" | "rx_send_req"
        | "rdma_recvs" | "recv_wrs" => Counter::RxRequests,
        "InRdmaWrites" | "InRdmaReads" | "InRdmaSends" | "iwInRdmaWrites" | "iwInRdmaReads"
        | "iwInRdmaSends" => Counter::RxRequests,
        // The installer's names for what is sent have no `tx`.
        "tx_bps_limit_drop_cnt" | "hw_bps_limit_drop_cnt" => Counter::TxDropsBandwidth,
        "rx_bps_limit_drop_cnt" | "hw_rx_bps_limit_drop_cnt" => Counter::RxDropsBandwidth,
        "tx_pps_limit_drop_cnt" | "hw_pps_limit_drop_cnt" => Counter::TxDropsPackets,
        "rx_pps_limit_drop_cnt" | "hw_rx_pps_limit_drop_cnt" => Counter::RxDropsPackets,
        "tx_disable_drop_cnt" | "hw_disable_drop_cnt" | "tx_roce_discards" => Counter::TxDropsOther,
        "rx_disable_drop_cnt"
        | "hw_rx_disable_drop_cnt"
        | "rx_drops"
        | "rx_roce_discards"
        | "ip4InDiscards"
        | "ip6InDiscards" => Counter::RxDropsOther,
        _ => return None,
    })
}

/// The counter that a name in `counters` stands for, and its unit in bytes or packets.
pub(in crate::agent) fn standard(name: &str) -> Option<(Counter, u64)> {
    Some(match name {
        "port_xmit_data" => (Counter::TxBytes, WORD),
        "port_rcv_data" => (Counter::RxBytes, WORD),
        "port_xmit_packets" => (Counter::TxPackets, 1),
        "port_rcv_packets" => (Counter::RxPackets, 1),
        "port_xmit_discards" => (Counter::TxDropsOther, 1),
        "port_rcv_errors" => (Counter::RxDropsOther, 1),
        _ => return None,
    })
}

/// The counters of `hw_counters`.
pub(in crate::agent) fn from_hardware<'a>(
    named: impl Iterator<Item = (&'a str, u64)>,
) -> DeviceCounters {
    let mut counters = DeviceCounters::default();
    for (name, value) in named {
        if let Some(counter) = hardware(name) {
            counters.add(counter, value);
        }
    }
    counters
}

/// The counters of `counters`; a saturated one is unknown.
pub(in crate::agent) fn from_standard<'a>(
    named: impl Iterator<Item = (&'a str, u64)>,
) -> DeviceCounters {
    let mut counters = DeviceCounters::default();
    for (name, value) in named.filter(|(_, value)| *value != SATURATED) {
        if let Some((counter, unit)) = standard(name) {
            counters.add(counter, value.wrapping_mul(unit));
        }
    }
    counters
}

/// Whether a counter has 32 bits: mlx5's request counters do.
pub(in crate::agent) fn is_32_bit(driver: &str, counter: usize) -> bool {
    driver == "mlx5" && counter == Counter::RxRequests as usize
}

/// Whether the names are those of erdma's installer driver, which may not refresh counters on a
/// read.
pub(in crate::agent) fn may_be_stale<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.any(|name| name == "hw_tx_bytes_cnt")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A family's names with their bytes out and in.
    fn bytes(named: &[(&'static str, u64)]) -> (Option<u64>, Option<u64>) {
        let counters = from_hardware(named.iter().copied());
        (counters.get(Counter::TxBytes), counters.get(Counter::RxBytes))
    }

    #[test]
    fn byte_counters_of_every_driver_are_recognised() {
        for [tx, rx] in [
            ["tx_bytes_cnt", "rx_bytes_cnt"],
            ["hw_tx_bytes_cnt", "hw_rx_bytes_cnt"],
            ["sent_bytes", "rcvd_bytes"],
            ["rdma_tx_bytes", "rdma_rx_bytes"],
            ["tx_bytes", "rx_bytes"],
        ] {
            assert_eq!(bytes(&[(tx, 3), (rx, 5)]), (Some(3), Some(5)), "{tx}");
        }
        let irdma = [("ip4OutOctets", 1), ("ip6OutOctets", 2), ("ip4InOctets", 4)];
        assert_eq!(bytes(&irdma), (Some(3), Some(4)));
    }

    #[test]
    fn bytes_are_unknown_if_only_packets_are_counted() {
        let rxe =
            from_hardware([("sent_pkts", 9), ("rcvd_pkts", 8), ("rdma_sends", 2)].into_iter());
        assert_eq!(rxe.get(Counter::TxBytes), None);
        assert_eq!(rxe.get(Counter::TxPackets), Some(9));
        assert_eq!(rxe.values().rx_bytes, None, "not zero");
        assert!(!rxe.has_bytes());
    }

    #[test]
    fn standard_counters_count_words_and_are_unknown_when_saturated() {
        let data = [("port_xmit_data", 10), ("port_rcv_data", SATURATED), ("port_rcv_packets", 7)];
        let counters = from_standard(data.into_iter());
        assert_eq!(counters.get(Counter::TxBytes), Some(40));
        assert_eq!(counters.get(Counter::RxBytes), None);
        assert_eq!(counters.get(Counter::RxPackets), Some(7));
    }

    #[test]
    fn the_hardware_counter_wins_over_the_standard_one() {
        let standard = from_standard([("port_xmit_data", 10), ("port_rcv_data", 20)].into_iter());
        let both = from_hardware([("tx_bytes", 7)].into_iter()).or(standard);
        assert_eq!(both.get(Counter::TxBytes), Some(7));
        assert_eq!(both.get(Counter::RxBytes), Some(80));
    }

    #[test]
    fn drops_are_distinguished_by_limit() {
        let named = [
            ("hw_bps_limit_drop_cnt", 1),
            ("hw_pps_limit_drop_cnt", 2),
            ("hw_disable_drop_cnt", 3),
            ("hw_rx_bps_limit_drop_cnt", 4),
            ("hw_rx_pps_limit_drop_cnt", 5),
            ("hw_rx_disable_drop_cnt", 6),
        ];
        let named_now = from_hardware(named.into_iter()).values();
        assert_eq!(named_now.tx_drops_bandwidth, Some(1));
        assert_eq!(named_now.tx_drops_packets, Some(2));
        assert_eq!(named_now.tx_drops_other, Some(3));
        assert_eq!(named_now.rx_drops_bandwidth, Some(4));
        assert_eq!(named_now.rx_drops_packets, Some(5));
        assert_eq!(named_now.rx_drops_other, Some(6));
        assert!(may_be_stale(["hw_tx_bytes_cnt"].into_iter()));
        assert!(!may_be_stale(["tx_bytes_cnt"].into_iter()));
    }
}
