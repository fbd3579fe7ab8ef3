#pragma once

// The environment variable LLAMA_MINICACHE: what it asks for, and what becomes of that.
//
// The variable is a user's explicit wish about a program that knows nothing of it. What became of it is therefore one line on
// stderr, also where the program silences llama.cpp's log.

#include "llama-minicache-settings.h"

#include <optional>
#include <string>

// The settings in the variable; nothing where it is unset or off. Throws std::invalid_argument, saying what is wrong with the text.
std::optional<minicache_settings> minicache_env_settings();

// Whether the variable decides about the contexts that the calling thread makes.
bool minicache_env_decides();

// Prints "LLAMA_MINICACHE: message" on stderr, each message once in the life of the process: programs make several contexts.
void minicache_env_report(const std::string & message);
