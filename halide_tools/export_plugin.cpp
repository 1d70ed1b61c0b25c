// Loaded by an executable made of C++ Generators as if it were an autoscheduler: writes the pipeline to a file instead, and ends.
//
// Halide serializes pipelines without the extents of estimates and without those of scalars, and does not say what a Generator declares:
// both are written beside it, as JSON. cpp_generators.py builds this, calls it and reads what it writes. Its parameters:
//
//     autoscheduler.generator   name of the Generator
//     autoscheduler.params      its GeneratorParams, KEY:VALUE a line, after an empty one (GenGen takes one = an argument, and no empty value)
//     autoscheduler.author      "true" for the pipeline with its author's schedule, "false" for the algorithm alone
//     autoscheduler.path        PATH.hlpipe and PATH.json are written
#include "Halide.h"

#include <cstdlib>
#include <fstream>
#include <iomanip>
#include <sstream>

using namespace Halide;
using Internal::AbstractGenerator;

namespace {

// A number as JSON, null for what is none.
std::string json(const Expr &e) {
    std::ostringstream text;
    text << std::setprecision(17);
    if (!e.defined()) {
        return "null";
    }
    const Expr value = Internal::simplify(e);
    if (auto i = Internal::as_const_int(value)) {
        text << *i;
    } else if (auto u = Internal::as_const_uint(value)) {
        text << *u;
    } else if (auto f = Internal::as_const_float(value)) {
        text << *f;
    } else {
        return "null";
    }
    return text.str();
}

std::string json(const std::string &s) {
    std::ostringstream text;
    text << std::quoted(s);
    return text.str();
}

std::string json(const Parameter &p) {
    std::ostringstream text;
    text << "{\"name\": " << json(p.name()) << ", \"code\": " << int(p.type().code()) << ", \"bits\": " << p.type().bits()
         << ", \"dimensions\": " << p.dimensions() << ", \"is_buffer\": " << (p.is_buffer() ? "true" : "false");
    if (p.is_buffer()) {
        text << ", \"bounds\": [";
        for (int d = 0; d < p.dimensions(); d++) {
            text << (d ? ", " : "") << "[" << json(p.min_constraint_estimate(d)) << ", " << json(p.extent_constraint_estimate(d)) << "]";
        }
        text << "]";
    } else {
        text << ", \"estimate\": " << json(p.estimate()) << ", \"default\": " << json(p.default_value());
    }
    text << "}";
    return text.str();
}

// The Generator once more, in this process: only it knows what it declares, and it gives its author's schedule.
std::unique_ptr<AbstractGenerator> create(const Target &target, const AutoschedulerParams &params, bool author) {
    const auto &extra = params.extra;
    auto generator = Internal::GeneratorRegistry::create(extra.at("generator"), GeneratorContext(target, author ? AutoschedulerParams() : params));
    std::istringstream lines(extra.at("params"));
    for (std::string line; std::getline(lines, line);) {
        const size_t colon = line.find(':');
        if (colon != std::string::npos) {
            generator->set_generatorparam_value(line.substr(0, colon), line.substr(colon + 1));
        }
    }
    return generator;
}

void write(const Pipeline &algorithm, const Target &target, const AutoschedulerParams &params, AutoSchedulerResults *) {
    const bool author = params.extra.at("author") == "true";
    auto generator = create(target, params, author);
    const Pipeline built = generator->build_pipeline();
    const Pipeline &pipeline = author ? built : algorithm;
    const std::string path = params.extra.at("path");
    serialize_pipeline(pipeline, path + ".hlpipe");

    std::ofstream file(path + ".json");
    file << "{\"inputs\": [";
    const char *comma = "";
    for (const auto &info : generator->arginfos()) {
        if (info.dir == Internal::ArgInfoDirection::Input) {
            for (const Parameter &p : generator->input_parameter(info.name)) {
                file << comma << json(p);
                comma = ",\n";
            }
        }
    }
    file << "],\n\"outputs\": [";
    comma = "";
    for (Func output : pipeline.outputs()) {
        file << comma << "[";
        comma = ",\n";
        const char *inner = "";
        for (const OutputImageParam &buffer : output.output_buffers()) {
            file << inner << json(buffer.parameter());
            inner = ", ";
        }
        file << "]";
    }
    file << "]}\n";
    file.close();
    std::_Exit(file.good() ? 0 : 1);  // before the pipeline is lowered, which may take minutes
}

struct Register {
    Register() {
        Pipeline::add_autoscheduler("CostModelExport", write);
    }
} register_;

}  // namespace
