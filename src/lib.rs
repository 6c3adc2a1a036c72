//! pool
pub mod apply;
pub mod cli;
pub mod clock;
pub mod config;
pub mod desired;
pub mod health;
pub mod plan;
pub mod pool;
pub mod probe;
pub mod render;
pub mod state;
pub mod worker;
