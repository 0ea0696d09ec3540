//! The server as a program, for what is not a test: it says what a client needs in its environment, one `NAME=VALUE` a line and an
//! empty line behind the last, and serves until its standard input ends.

use std::io::Read as _;

use keyframe_test_s3::Server;

fn main() {
    let server = Server::start();
    for (name, value) in server.environment() {
        println!("{name}={value}");
    }
    println!();
    // Whoever started it keeps the other end open.
    let _ended = std::io::stdin().read_to_end(&mut Vec::new());
}
