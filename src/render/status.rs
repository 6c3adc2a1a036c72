//! Pools and workers as borderless tables, as kubectl draws them.

use console::measure_text_width;
use jiff::Timestamp;

use super::Look;
use crate::pool::{StaticPoolState, WorkerStatus};
use crate::worker::Phase;

/// Shows pools, a line each.
pub fn status_table(pools: &[StaticPoolState], look: Look) -> String {
    let mut rows =
        vec![["POOL", "READY", "SIZE", "PHASES", "SERIAL", "APPLIED"].map(str::to_owned).to_vec()];
    for pool in pools {
        let phases: Vec<String> =
            pool.phases.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
        rows.push(vec![
            pool.pool.to_string(),
            format!("{}/{}", pool.ready, pool.fixed_size.unwrap_or(0)),
            pool.fixed_size.map_or_else(|| "-".to_owned(), |size| size.to_string()),
            if phases.is_empty() { "-".to_owned() } else { phases.join(", ") },
            pool.serial.to_string(),
            pool.applied_at.map_or_else(|| "-".to_owned(), |at| format!("{at:.0}")),
        ]);
    }
    table(&rows, look)
}

/// Shows workers, a line each.
pub fn worker_table(pools: &[StaticPoolState], now: Timestamp, look: Look) -> String {
    let mut rows = vec![
        ["WORKER", "PHASE", "AGE", "LEASED TO", "PROVIDER", "ID", "ADDRESS", "IMAGE"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for worker in pools.iter().flat_map(|pool| &pool.workers) {
        let flags = [
            (worker.cordoned && !worker.draining, ", cordoned"),
            (worker.draining, ", draining"),
            (worker.suspect && worker.phase == Phase::Ready, ", suspect"),
        ];
        let set: String = flags.iter().filter(|(set, _)| *set).map(|(_, flag)| *flag).collect();
        let phase = format!("{}{set}", worker.phase);
        let phase = match worker.phase {
            Phase::Ready if set.is_empty() => look.added(&phase),
            Phase::Failed | Phase::Unhealthy | Phase::Lost => look.removed(&phase),
            _ => look.changed(&phase),
        };
        rows.push(vec![
            worker.name.clone(),
            phase,
            age(worker.since, now),
            worker.lease.as_ref().map_or_else(|| "-".to_owned(), |lease| lease.holder.clone()),
            worker.provider.clone(),
            worker.provider_id.clone().unwrap_or_else(|| "-".to_owned()),
            worker.addresses.first().cloned().unwrap_or_else(|| "-".to_owned()),
            worker.image.clone(),
        ]);
    }
    table(&rows, look)
}

/// Shows everything that is recorded of one worker.
pub fn worker_details(worker: &WorkerStatus) -> String {
    let mut text = crate::config::to_yaml(worker);
    if let Some(failure) = &worker.failure {
        text.push_str(&format!("# {}\n", failure.message));
    }
    text
}

fn age(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

pub(super) fn table(rows: &[Vec<String>], look: Look) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| measure_text_width(cell)).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.push_str(&" ".repeat(width - measure_text_width(cell) + 2));
        }
        let line = line.trim_end();
        text.push_str(&if number == 0 { look.faint(line) } else { line.to_owned() });
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_do_not_trail() {
        let rows = [vec!["A".into(), "B".into()], vec!["long".into(), "x".into()]];
        assert_eq!(table(&rows, Look::PLAIN), "A     B\nlong  x\n");
    }

    #[test]
    fn ages_have_one_unit() {
        let at = |second| Timestamp::from_second(second).unwrap();
        for (seconds, shown) in
            [(5, "5s"), (119, "119s"), (120, "2m"), (7200, "2h"), (172_800, "2d")]
        {
            assert_eq!(age(at(0), at(seconds)), shown);
        }
        assert_eq!(age(at(10), at(0)), "0s");
    }
}
