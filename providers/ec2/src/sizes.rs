//! Types of instances by cores and memory.
//!
//! Input: what a worker needs. Output: types of the smallest size that has it, the newest generation first. A table
//! and not a question to the API: the same pool gets the same types tomorrow, and a repeated create the same type.
//! All are for x86-64, as most machine images are; others are named by whoever wants them.

/// A family of types, and its sizes by cores.
struct Family {
    name: &'static str,
    /// MiB of memory for each core.
    memory_per_core: u32,
    /// The cores of its sizes beside those that all have.
    largest: &'static [u32],
}

/// The cores of sizes that every family below has.
const COMMON: [u32; 7] = [2, 4, 8, 16, 32, 48, 64];

const fn family(name: &'static str, gib_per_core: u32, largest: &'static [u32]) -> Family {
    Family { name, memory_per_core: gib_per_core * 1024, largest }
}

/// Compute, general purpose and memory optimised, the newest generation of each kind first.
const FAMILIES: [Family; 8] = [
    family("c7i", 2, &[96, 192]),
    family("c6i", 2, &[96, 128]),
    family("m7i", 4, &[96, 192]),
    family("m6i", 4, &[96, 128]),
    family("m5", 4, &[96]),
    family("r7i", 8, &[96, 192]),
    family("r6i", 8, &[96, 128]),
    family("r5", 8, &[96]),
];

/// Sizes below those of the families: burstable, with two cores.
const SMALL: [(&str, u32); 6] = [
    ("t3.nano", 512),
    ("t3a.nano", 512),
    ("t3.micro", 1024),
    ("t3a.micro", 1024),
    ("t3.small", 2048),
    ("t3a.small", 2048),
];
const SMALL_CORES: u32 = 2;

/// What a core costs, where a GiB of memory costs 1: on-demand prices of the families above in us-east-1, rounded.
const CORE_PRICE: u32 = 7;

/// One type of instance.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Size {
    name: String,
    cores: u32,
    memory_mb: u32,
}

impl Size {
    fn price(&self) -> u32 {
        self.cores * CORE_PRICE * 1024 + self.memory_mb
    }
}

fn all() -> impl Iterator<Item = Size> {
    let small = SMALL.iter().map(|(name, memory_mb)| Size {
        name: (*name).to_owned(),
        cores: SMALL_CORES,
        memory_mb: *memory_mb,
    });
    let large = FAMILIES.iter().flat_map(|family| {
        COMMON.iter().chain(family.largest).map(|&cores| {
            let size = match cores {
                2 => "large".to_owned(),
                4 => "xlarge".to_owned(),
                _ => format!("{}xlarge", cores / 4),
            };
            Size {
                name: format!("{}.{size}", family.name),
                cores,
                memory_mb: cores * family.memory_per_core,
            }
        })
    });
    small.chain(large)
}

/// Returns the types of the smallest size that has `cores` and `memory_mb`, the best first; none when no known type has.
pub fn fitting(cores: u32, memory_mb: u32) -> Vec<String> {
    let fits = |size: &Size| size.cores >= cores && size.memory_mb >= memory_mb;
    let Some(best) = all().filter(fits).min_by_key(Size::price) else { return Vec::new() };
    let is_alike = |size: &Size| (size.cores, size.memory_mb) == (best.cores, best.memory_mb);
    all().filter(is_alike).map(|size| size.name).collect()
}

/// Returns the cores and MiB of memory of a type that is known here.
pub fn size_of(instance_type: &str) -> Option<(u32, u32)> {
    all().find(|size| size.name == instance_type).map(|size| (size.cores, size.memory_mb))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_size_that_fits_is_chosen_newest_first() {
        for (cores, memory_mb, expected) in [
            (1, 256, "t3.nano t3a.nano"),
            (1, 1024, "t3.micro t3a.micro"),
            (2, 2048, "t3.small t3a.small"),
            (2, 4096, "c7i.large c6i.large"),
            (2, 8192, "m7i.large m6i.large m5.large"),
            (2, 16384, "r7i.large r6i.large r5.large"),
            (4, 4096, "c7i.xlarge c6i.xlarge"),
            (4, 16384, "m7i.xlarge m6i.xlarge m5.xlarge"),
            (3, 9000, "m7i.xlarge m6i.xlarge m5.xlarge"),
            (33, 65536, "c7i.12xlarge c6i.12xlarge"),
            (1, 1_572_864, "r7i.48xlarge"),
        ] {
            assert_eq!(fitting(cores, memory_mb).join(" "), expected, "{cores} {memory_mb}");
        }
        assert!(fitting(193, 1).is_empty() && fitting(1, 2_000_000).is_empty());
    }

    #[test]
    fn what_is_chosen_has_what_was_asked_for() {
        for cores in 1..=192 {
            for memory_mb in [1, 512, 3000, 65_536, 300_000, 1_572_864] {
                for name in fitting(cores, memory_mb) {
                    let (has_cores, has_memory) = size_of(&name).unwrap();
                    assert!(has_cores >= cores && has_memory >= memory_mb, "{name}");
                }
            }
        }
        assert_eq!(size_of("p5.48xlarge"), None);
    }
}
