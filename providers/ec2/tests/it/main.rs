//! The EC2 provider on moto's server, which nobody here wrote. boto3 looks at what there is, botocore checks every
//! signature, and a proxy in front of it (`tests/ec2/proxy.py`) does what moto does not: it remembers client tokens,
//! loses answers, has no room, throttles and shows effects late.
//!
//! `POOL_TEST_EC2` says where moto listens; without it these tests say that they were not run. `./test.sh` makes them
//! mandatory.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod answers;
mod conformance;
mod ground;
mod instances;
mod signatures;
mod tokens;
